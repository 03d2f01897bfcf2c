// Passes over one symmetric matrix [n, n]; they read only the upper triangle, with the diagonal.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vector_loops.h"

namespace kradagrad::cpu {

// out = a x, upper triangle only; `out` may be x.
template <class T>
void scale_upper(T* out, T a, const T* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) scale(out + i * n + i, a, x + i * n + i, n - i);
}

template <class T>
void add_diagonal(T* x, T value, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i * n + i] += value;
}

// Copies the upper triangle to the lower one, in tiles that keep the reads inside the first-level cache.
template <class T>
void mirror_upper(T* x, int64_t n) {
  constexpr int64_t kTile = 16;
  for (int64_t row = 0; row < n; row += kTile) {
    for (int64_t col = 0; col <= row; col += kTile) {
      for (int64_t j = col; j < std::min(col + kTile, n); ++j) {
        for (int64_t i = std::max(row, j + 1); i < std::min(row + kTile, n); ++i) x[i * n + j] = x[j * n + i];
      }
    }
  }
}

// |x|_F^2
template <class T>
double squared_norm_of_upper(const T* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T* row = x + i * n + i;
    sum += 2 * dot(row + 1, row + 1, n - i - 1) + static_cast<double>(row[0]) * row[0];
  }
  return sum;
}

template <class T>
double trace(const T* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i * n + i];
  return sum;
}

}  // namespace kradagrad::cpu
