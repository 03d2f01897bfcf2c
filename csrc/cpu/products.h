// Batched matrix products, through torch's own bmm, on strided matrices in memory that the caller owns.
//
// Inside a parallel region the product runs on the calling thread alone; outside of one it uses them all.
#pragma once

#include <cstdint>

namespace kradagrad::cpu {

// `count` strided matrices [rows, cols]; strides in elements.
template <class T>
struct Matrices {
  T* data;
  int64_t count, rows, cols;
  int64_t batch_stride, row_stride, col_stride;

  static Matrices contiguous(T* data, int64_t count, int64_t rows, int64_t cols) {
    return {data, count, rows, cols, rows * cols, cols, 1};
  }
  T* item(int64_t i) const { return data + i * batch_stride; }
  Matrices items(int64_t first, int64_t number) const {
    return {item(first), number, rows, cols, batch_stride, row_stride, col_stride};
  }
  Matrices transposed() const { return {data, count, cols, rows, batch_stride, col_stride, row_stride}; }
  Matrices row_range(int64_t begin, int64_t end) const {
    return {data + begin * row_stride, count, end - begin, cols, batch_stride, row_stride, col_stride};
  }
  Matrices col_range(int64_t begin, int64_t end) const {
    return transposed().row_range(begin, end).transposed();
  }
};

// out = a b
template <class T>
void multiply(const Matrices<T>& out, const Matrices<T>& a, const Matrices<T>& b);

// The lower triangle of out = a b where that is symmetric, by panels of rows: for [p, p] outputs and q
// inner columns p^2 q flops instead of 2 p^2 q, and a share of the diagonal blocks' upper triangles.
template <class T>
void multiply_lower(const Matrices<T>& out, const Matrices<T>& a, const Matrices<T>& b);

}  // namespace kradagrad::cpu
