// Tiles keep the mirrored writes inside the first-level cache; see symmetric.h for the formulas.
#include "symmetric.h"

#include <algorithm>

#include "multiversion.h"
#include "vector_loops.h"

namespace kradagrad::cpu {
namespace {

constexpr int64_t kTile = 16;

// A tile on the diagonal, or one cut short by the matrix's edge.
template <class T>
KRADAGRAD_INLINE void combine_edge_tile(T* out, T a, const T* x, T b, const T* y, int64_t n, int64_t row,
                                        int64_t col) {
  for (int64_t i = row; i < std::min(row + kTile, n); ++i) {
    for (int64_t j = col; j < std::min(col + kTile, i + 1); ++j) {
      const T value = a * x[i * n + j] + b * y[i * n + j];
      out[i * n + j] = value;
      out[j * n + i] = value;
    }
  }
}

// A whole tile below the diagonal.
template <class T>
KRADAGRAD_INLINE void combine_inner_tile(T* out, T a, const T* x, T b, const T* y, int64_t n, int64_t row,
                                         int64_t col) {
  T tile[kTile * kTile];
  for (int64_t i = 0; i < kTile; ++i) {
    const int64_t at = (row + i) * n + col;
    for (int64_t j = 0; j < kTile; ++j) tile[i * kTile + j] = a * x[at + j] + b * y[at + j];
    for (int64_t j = 0; j < kTile; ++j) out[at + j] = tile[i * kTile + j];
  }
  for (int64_t j = 0; j < kTile; ++j) {
    for (int64_t i = 0; i < kTile; ++i) out[(col + j) * n + row + i] = tile[i * kTile + j];
  }
}

template <class T>
KRADAGRAD_INLINE void combine_body(T* out, T diagonal, T a, const T* x, T b, const T* y, int64_t n) {
  for (int64_t row = 0; row < n; row += kTile) {
    for (int64_t col = 0; col <= row; col += kTile) {
      if (col == row || row + kTile > n) {
        combine_edge_tile(out, a, x, b, y, n, row, col);
      } else {
        combine_inner_tile(out, a, x, b, y, n, row, col);
      }
    }
  }
  if (diagonal != 0) {
    for (int64_t i = 0; i < n; ++i) out[i * n + i] += diagonal;
  }
}

template <class T>
double squared_norm_body(const T* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) {
    const T* row = x + i * n;
    sum += 2 * dot(row, row, i) + static_cast<double>(row[i]) * row[i];
  }
  return sum;
}

}  // namespace

KRADAGRAD_MULTIVERSION void combine_lower(float* out, float diagonal, float a, const float* x, float b,
                                          const float* y, int64_t n) {
  combine_body(out, diagonal, a, x, b, y, n);
}
KRADAGRAD_MULTIVERSION void combine_lower(double* out, double diagonal, double a, const double* x, double b,
                                          const double* y, int64_t n) {
  combine_body(out, diagonal, a, x, b, y, n);
}

double squared_norm_of_lower(const float* x, int64_t n) { return squared_norm_body(x, n); }
double squared_norm_of_lower(const double* x, int64_t n) { return squared_norm_body(x, n); }

}  // namespace kradagrad::cpu
