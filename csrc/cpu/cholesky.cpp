// Left-looking by panels of `kPanel` columns; U overwrites H, and V has the size of a panel:
//
//   H[panel, panel on] -= U[above, panel]^T U[above, panel on]
//   V = U[panel, panel]^-1                                        a small kernel of our own
//   H[panel, right of it] <- V^T H[panel, right of it]
//   F[:, panel] <- (F[:, panel] - F[:, left of it] U[above, panel]) V
//
// so that all but V are matrix products. One thread a batch.
#include "cholesky.h"

#include <algorithm>
#include <cmath>

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

// V = U^-1 [size, size] of the matrix whose upper triangle is in `source`, row stride `source_row`. On
// failure V is zero, which keeps the item finite through the products that follow.
template <class T>
bool invert_diagonal(const T* source, int64_t source_row, int size, T* v) {
  const int width = size <= 16 ? 16 : size <= 32 ? 32 : kPanel;
  alignas(64) T tile[kPanel * kPanel], inverse[kPanel * kPanel];
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j < width; ++j)
      tile[i * width + j] = i <= j && j < size ? source[i * source_row + j] : T(0);
  }
  const bool positive = factor(tile, inverse, size, width);
  for (int i = 0; i < size; ++i) {
    for (int j = 0; j < size; ++j) v[i * size + j] = positive ? inverse[i * width + j] : T(0);
  }
  return positive;
}

}  // namespace

template <class T>
void solve_by_cholesky(const Matrices<T>& f, const Matrices<T>& h, uint8_t* failed, Buffer<T>& scratch) {
  const int64_t count = h.count, d = h.rows, widest = std::min<int64_t>(d, kPanel);
  T* const memory = scratch.reserve(count * widest * widest);
  for (int64_t begin = 0; begin < d; begin += kPanel) {
    const int64_t end = std::min<int64_t>(begin + kPanel, d), width = end - begin;
    const auto above = h.row_range(0, begin).col_range(begin, d);
    const auto rows = h.row_range(begin, end), from_panel = rows.col_range(begin, d);
    const auto columns = f.row_range(0, end).col_range(begin, end);
    const auto v = Matrices<T>::contiguous(memory, count, width, width);
    if (begin > 0) {
      const auto above_panel = above.col_range(0, width);
      multiply(from_panel, above_panel.transposed(), above, {Part::kUpper}, T(-1), T(1));
      multiply(columns.row_range(0, begin), f.row_range(0, begin).col_range(0, begin), above_panel,
               {Part::kWhole, Part::kUpper}, T(-1), T(1));
    }
    for (int64_t i = 0; i < count; ++i) {
      if (!invert_diagonal(from_panel.item(i), d, static_cast<int>(width), v.item(i))) failed[i] = 1;
    }
    const auto right = rows.col_range(end, d);
    multiply(right, v.transposed(), right, {Part::kWhole, Part::kLower});
    multiply(columns, columns, v, {Part::kWhole, Part::kWhole, Part::kUpper});
  }
}

template void solve_by_cholesky(const Matrices<float>&, const Matrices<float>&, uint8_t*, Buffer<float>&);
template void solve_by_cholesky(const Matrices<double>&, const Matrices<double>&, uint8_t*, Buffer<double>&);

}  // namespace kradagrad::cpu
