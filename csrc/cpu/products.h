// Batched products of small strided matrices in the caller's memory: on one thread if the caller is one of
// several threads, otherwise on all threads.
#pragma once

#include <cstdint>

namespace kradagrad::cpu {

// `count` strided matrices [rows, cols]; strides in elements.
template <class T>
struct MatrixBatch {
  T* data;
  int64_t count, rows, cols;
  int64_t batch_stride, row_stride, col_stride;

  static MatrixBatch contiguous(T* data, int64_t count, int64_t rows, int64_t cols) {
    return {data, count, rows, cols, rows * cols, cols, 1};
  }
  T* item(int64_t i) const { return data + i * batch_stride; }
  MatrixBatch items(int64_t first, int64_t number) const {
    return {item(first), number, rows, cols, batch_stride, row_stride, col_stride};
  }
  MatrixBatch transposed() const { return {data, count, cols, rows, batch_stride, col_stride, row_stride}; }
  MatrixBatch row_range(int64_t begin, int64_t end) const {
    return {data + begin * row_stride, count, end - begin, cols, batch_stride, row_stride, col_stride};
  }
  MatrixBatch col_range(int64_t begin, int64_t end) const {
    return transposed().row_range(begin, end).transposed();
  }
};

enum class Part { kWhole, kUpper, kLower };

// The part of a matrix that is used: outside it an operand is zero, and an output is undefined. `out` and b
// may be whole or upper, a may be any.
struct Triangles {
  Part out = Part::kWhole, a = Part::kWhole, b = Part::kWhole;
};
constexpr Triangles kUpperOut{Part::kUpper};

// The largest inner dimension with which a product may overwrite one of its operands.
constexpr int64_t kDepth = 256;

// out = alpha a b + beta out, with flops only for the triangles; `out` has contiguous rows. It may be `b`, or
// `a` if b is upper triangular.
template <class T>
void multiply(const MatrixBatch<T>& out, const MatrixBatch<T>& a, const MatrixBatch<T>& b,
              Triangles triangles = {}, T alpha = 1, T beta = 0);

}  // namespace kradagrad::cpu
