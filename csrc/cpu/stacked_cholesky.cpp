// Left-looking by panels of `kPanel` columns, for the stacked matrix S = [N; Y] [2 k, k]:
//
//   T = S[:, panel] - S[:, left of it] S[panel, left of it]^T      rows from the panel's first on
//   L = chol(T[panel rows]),  V = L^-T                             a small kernel of our own
//   S[below, panel] = T[below] V
//
// so that the triangular solve Y L^-T comes out of matrix products alone. One thread a batch.
#include "stacked_cholesky.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "multiversion.h"
#include "vector_loops.h"

namespace kradagrad::cpu {
namespace {

constexpr int kPanel = 64;
constexpr int kStrip = 16;

// row -= sum over l in [begin, end) of coefficients[l * step] * rows[l], for `kCols` elements of rows
// `kWidth` apart. The sums stay in registers, two of them so that one's additions do not wait for the
// other's.
template <int kCols, int kWidth, class T>
KRADAGRAD_INLINE void subtract_rows(T* row, const T* coefficients, int64_t step, const T* rows, int begin,
                                    int end) {
  T even[kCols] = {}, odd[kCols] = {};
  int l = begin;
  for (; l + 1 < end; l += 2) {
    const T first = coefficients[l * step], second = coefficients[(l + 1) * step];
    for (int c = 0; c < kCols; ++c) even[c] += first * rows[l * kWidth + c];
    for (int c = 0; c < kCols; ++c) odd[c] += second * rows[(l + 1) * kWidth + c];
  }
  if (l < end) {
    for (int c = 0; c < kCols; ++c) even[c] += coefficients[l * step] * rows[l * kWidth + c];
  }
  for (int c = 0; c < kCols; ++c) row[c] -= even[c] + odd[c];
}

// Rows from kFirst on of U = L^T, in strips: the rows of a strip leave out the columns left of it, which are
// zero. `reciprocals` gets 1 / diagonal. False where a pivot is bad.
template <int kWidth, int kFirst, class T>
KRADAGRAD_INLINE bool factor_strips(T* tile, T* reciprocals, int size) {
  for (int i = kFirst; i < std::min(size, kFirst + kStrip); ++i) {
    T* row = tile + i * kWidth;
    subtract_rows<kWidth - kFirst, kWidth>(row + kFirst, tile + i, kWidth, tile + kFirst, 0, i);
    const T pivot = row[i];
    if (!(pivot > 0) || !std::isfinite(pivot)) return false;
    reciprocals[i] = 1 / std::sqrt(pivot);
    for (int c = kFirst; c < kWidth; ++c) row[c] *= reciprocals[i];
  }
  if constexpr (kFirst + kStrip < kWidth) {
    return factor_strips<kWidth, kFirst + kStrip>(tile, reciprocals, size);
  }
  return true;
}

// Rows from kFirst on of U^-1, from the last row up.
template <int kWidth, int kFirst, class T>
KRADAGRAD_INLINE void invert_strips(const T* tile, const T* reciprocals, T* inverse, int size) {
  if constexpr (kFirst + kStrip < kWidth) {
    invert_strips<kWidth, kFirst + kStrip>(tile, reciprocals, inverse, size);
  }
  for (int i = std::min(size, kFirst + kStrip) - 1; i >= kFirst; --i) {
    T* row = inverse + i * kWidth;
    for (int c = 0; c < kWidth; ++c) row[c] = c == i ? T(1) : T(0);
    subtract_rows<kWidth - kFirst, kWidth>(row + kFirst, tile + i * kWidth, 1, inverse + kFirst, i + 1, size);
    for (int c = kFirst; c < kWidth; ++c) row[c] *= reciprocals[i];
  }
}

// `tile` [size, kWidth] holds the upper triangle of a symmetric matrix, zeros right of it. Turns that into
// U = L^T and writes U^-1 to `inverse` [size, kWidth]. False where a pivot is bad.
template <int kWidth, class T>
KRADAGRAD_INLINE bool factor_tile(T* tile, T* inverse, int size) {
  T reciprocals[kWidth];
  if (!factor_strips<kWidth, 0>(tile, reciprocals, size)) return false;
  invert_strips<kWidth, 0>(tile, reciprocals, inverse, size);
  return true;
}

template <class T>
KRADAGRAD_INLINE bool factor_any(T* tile, T* inverse, int size, int width) {
  if (width == 16) return factor_tile<16>(tile, inverse, size);
  if (width == 32) return factor_tile<32>(tile, inverse, size);
  return factor_tile<kPanel>(tile, inverse, size);
}

KRADAGRAD_MULTIVERSION bool factor(float* tile, float* inverse, int size, int width) {
  return factor_any(tile, inverse, size, width);
}
KRADAGRAD_MULTIVERSION bool factor(double* tile, double* inverse, int size, int width) {
  return factor_any(tile, inverse, size, width);
}

// V = L^-T [size, size] of the matrix whose lower triangle is in `source`, row stride `source_row`. On
// failure V is zero, which keeps the item finite through the products that follow.
template <class T>
bool invert_diagonal(const T* source, int64_t source_row, int size, T* v) {
  const int width = size <= 16 ? 16 : size <= 32 ? 32 : kPanel;
  alignas(64) T tile[kPanel * kPanel], inverse[kPanel * kPanel];
  std::fill(tile, tile + size * width, T(0));
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j <= i; ++j) tile[j * width + i] = source[i * source_row + j];
  }
  const bool positive = factor(tile, inverse, size, width);
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j < size; ++j) v[i * size + j] = positive ? inverse[i * width + j] : T(0);
  }
  return positive;
}

// T = S[:, panel] - S[:, :begin] N[panel, :begin]^T
template <class T>
void panel_remainder(const Matrices<T>& out, const Matrices<T>& s, const Matrices<T>& head, int64_t begin) {
  if (begin > 0) multiply(out, s.col_range(0, begin), head.transposed());
  for (int64_t item = 0; item < s.count; ++item) {
    for (int64_t i = 0; i < s.rows; ++i) {
      const T* from = s.item(item) + i * s.row_stride + begin;
      T* to = out.item(item) + i * out.row_stride;
      if (begin > 0) {
        weighted_sum(to, T(1), from, T(-1), to, out.cols);
      } else {
        std::memcpy(to, from, out.cols * sizeof(T));
      }
    }
  }
}

// out = a v for an upper triangular v, without the lower left quarter of it where that is worth two products.
template <class T>
void multiply_upper(const Matrices<T>& out, const Matrices<T>& a, const Matrices<T>& v) {
  const int64_t n = v.rows, half = n / 2;
  if (n < kPanel || out.rows < 2 * kPanel) return multiply(out, a, v);
  multiply(out.col_range(0, half), a.col_range(0, half), v.row_range(0, half).col_range(0, half));
  multiply(out.col_range(half, n), a, v.col_range(half, n));
}

}  // namespace

template <class T>
void stacked_cholesky(const Matrices<T>& n, const Matrices<T>& y, uint8_t* failed, Buffer<T>& scratch) {
  const int64_t count = n.count, k = n.rows, widest = std::min<int64_t>(k, kPanel);
  T* const memory = scratch.reserve(count * widest * (2 * k + widest));
  for (int64_t begin = 0; begin < k; begin += kPanel) {
    const int64_t end = std::min<int64_t>(begin + kPanel, k), width = end - begin;
    const int64_t rows = end;  // of Y that are not zero in this panel
    const auto top = Matrices<T>::contiguous(memory, count, k - begin, width);
    const auto bottom = Matrices<T>::contiguous(memory + count * width * (k - begin), count, rows, width);
    const auto v = Matrices<T>::contiguous(bottom.data + count * width * rows, count, width, width);
    const auto head = n.row_range(begin, end).col_range(0, begin);
    panel_remainder(top, n.row_range(begin, k), head, begin);
    panel_remainder(bottom, y.row_range(0, rows), head, begin);
    for (int64_t item = 0; item < count; ++item) {
      if (!invert_diagonal(top.item(item), width, static_cast<int>(width), v.item(item))) failed[item] = 1;
    }
    multiply_upper(n.row_range(end, k).col_range(begin, end), top.row_range(width, k - begin), v);
    multiply_upper(y.row_range(0, rows).col_range(begin, end), bottom, v);
  }
}

template void stacked_cholesky(const Matrices<float>&, const Matrices<float>&, uint8_t*, Buffer<float>&);
template void stacked_cholesky(const Matrices<double>&, const Matrices<double>&, uint8_t*, Buffer<double>&);

}  // namespace kradagrad::cpu
