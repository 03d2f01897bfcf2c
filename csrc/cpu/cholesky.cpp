// A left-looking decomposition by panels of `kPanel` columns; U overwrites H, and V has the size of a panel:
//
//   H[panel, panel on] -= U[above, panel]^T U[above, panel on]
//   V = U[panel, panel]^-1                                        by factor_body
//   H[panel, right of it] <- V^T H[panel, right of it]
//   F[:, panel] <- (F[:, panel] - F[:, left of it] U[above, panel]) V
//
// so that all steps except V are matrix products. Only these may use several threads.
#include "cholesky.h"

#include <algorithm>
#include <cmath>

#include "multiversion.h"

namespace kradagrad::cpu {
namespace {

constexpr int kPanel = 32;

// row -= sum over l in [begin, end) of coefficients[l * step] * rows[l], where all rows have kPanel elements.
// There are two sums, in registers, so that additions to one overlap with additions to the other.
template <class T>
KRADAGRAD_INLINE void subtract_rows(T* row, const T* coefficients, int64_t step, const T* rows, int begin,
                                    int end) {
  T even[kPanel] = {}, odd[kPanel] = {};
  int l = begin;
  for (; l + 1 < end; l += 2) {
    const T first = coefficients[l * step], second = coefficients[(l + 1) * step];
    for (int c = 0; c < kPanel; ++c) even[c] += first * rows[l * kPanel + c];
    for (int c = 0; c < kPanel; ++c) odd[c] += second * rows[(l + 1) * kPanel + c];
  }
  if (l < end) {
    for (int c = 0; c < kPanel; ++c) even[c] += coefficients[l * step] * rows[l * kPanel + c];
  }
  for (int c = 0; c < kPanel; ++c) row[c] -= even[c] + odd[c];
}

// Replaces the upper triangle of a symmetric matrix in `tile` [size, kPanel], zero elsewhere, with U, and
// writes U^-1 to `inverse`, row by row from the last. Returns false if a pivot is not positive and finite.
template <class T>
KRADAGRAD_INLINE bool factor_body(T* tile, T* inverse, int size) {
  T reciprocals[kPanel];
  for (int i = 0; i < size; ++i) {
    T* const row = tile + i * kPanel;
    subtract_rows(row, tile + i, kPanel, tile, 0, i);
    const T pivot = row[i];
    if (!(pivot > 0) || !std::isfinite(pivot)) return false;
    reciprocals[i] = 1 / std::sqrt(pivot);
    for (int c = 0; c < kPanel; ++c) row[c] = c < i ? T(0) : row[c] * reciprocals[i];
  }
  for (int i = size - 1; i >= 0; --i) {
    T* const row = inverse + i * kPanel;
    for (int c = 0; c < kPanel; ++c) row[c] = c == i ? T(1) : T(0);
    subtract_rows(row, tile + i * kPanel, 1, inverse, i + 1, size);
    for (int c = 0; c < kPanel; ++c) row[c] *= reciprocals[i];
  }
  return true;
}

KRADAGRAD_MULTIVERSION bool factor(float* tile, float* inverse, int size) {
  return factor_body(tile, inverse, size);
}
KRADAGRAD_MULTIVERSION bool factor(double* tile, double* inverse, int size) {
  return factor_body(tile, inverse, size);
}

// V = U^-1 [size, kPanel] of the matrix whose upper triangle is in `source` with row stride `source_row`. On
// failure V is zero, which keeps the item finite in the products that follow.
template <class T>
bool invert_diagonal(const T* source, int64_t source_row, int size, T* v) {
  alignas(64) T tile[kPanel * kPanel] = {};
  for (int i = 0; i < size; ++i) std::copy_n(source + i * source_row + i, size - i, tile + i * kPanel + i);
  if (factor(tile, v, size)) return true;
  std::fill_n(v, size * kPanel, T(0));
  return false;
}

}  // namespace

template <class T>
void solve_by_cholesky(const MatrixBatch<T>& f, const MatrixBatch<T>& h, uint8_t* failed,
                       Buffer<T>& scratch) {
  const int64_t count = h.count, d = h.rows, tallest = std::min<int64_t>(d, kPanel);
  const auto inverses =
      MatrixBatch<T>::contiguous(scratch.reserve(count * tallest * kPanel), count, tallest, kPanel);
  for (int64_t begin = 0; begin < d; begin += kPanel) {
    const int64_t end = std::min<int64_t>(begin + kPanel, d), width = end - begin;
    const auto above = h.row_range(0, begin).col_range(begin, d);
    const auto rows = h.row_range(begin, end), from_panel = rows.col_range(begin, d);
    const auto columns = f.row_range(0, end).col_range(begin, end);
    const auto v = inverses.row_range(0, width).col_range(0, width);
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

template void solve_by_cholesky(const MatrixBatch<float>&, const MatrixBatch<float>&, uint8_t*,
                                Buffer<float>&);
template void solve_by_cholesky(const MatrixBatch<double>&, const MatrixBatch<double>&, uint8_t*,
                                Buffer<double>&);

}  // namespace kradagrad::cpu
