// Passes over one symmetric matrix [n, n] of which only the lower triangle, with the diagonal, is read.
#pragma once

#include <algorithm>
#include <cstdint>

#include "vector_loops.h"

namespace kradagrad::cpu {

// out = a x + b y, the lower triangle alone; `out` may be x or y.
template <class T>
void combine_lower(T* out, T a, const T* x, T b, const T* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) weighted_sum(out + i * n, a, x + i * n, b, y + i * n, i + 1);
}

template <class T>
void add_diagonal(T* x, T value, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i * n + i] += value;
}

// Copies the lower triangle to the upper one, in tiles that keep the writes inside the first-level cache.
template <class T>
void mirror_lower(T* x, int64_t n) {
  constexpr int64_t kTile = 16;
  for (int64_t row = 0; row < n; row += kTile) {
    for (int64_t col = 0; col <= row; col += kTile) {
      for (int64_t j = col; j < std::min(col + kTile, n); ++j) {
        for (int64_t i = std::max(row, j + 1); i < std::min(row + kTile, n); ++i) x[j * n + i] = x[i * n + j];
      }
    }
  }
}

// |x|_F^2
template <class T>
double squared_norm_of_lower(const T* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T* row = x + i * n;
    sum += 2 * dot(row, row, i) + static_cast<double>(row[i]) * row[i];
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
