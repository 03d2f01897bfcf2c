// Blocks in global memory: finding them, filling tiles of shared memory from them, and writing them.
#pragma once

#include <cuda_bf16.h>

#include "table.h"
#include "tile_formats.cuh"

namespace kradagrad::cuda {

// The last index in [0, count) whose first(index) is at most `value`.
template <class First>
__device__ __forceinline__ int search(int count, int64_t value, const First& first) {
  int low = 0;
  while (count > 1) {
    const int half = count / 2;
    if (first(low + half) <= value) low += half;
    count -= half;
  }
  return low;
}

// One block's matrix. Elements outside [rows, cols] are never accessed; reads return zeros there.
struct Matrix {
  void* data;
  int64_t row_stride, col_stride;
  int rows, cols;
  bool bf16, aligned;

  Matrix() = default;

  __device__ __forceinline__ Matrix(const View* views, const Matrices& of, int64_t block, int rows, int cols)
      : rows(rows), cols(cols), bf16(of.bf16), aligned(of.aligned) {
    const View* const all = views + of.first_view;
    const View& view = all[search(of.views, block, [&](int i) { return all[i].first; })];
    const int64_t index = block - view.first;
    const int64_t start = index / view.inner * view.outer_stride + index % view.inner * view.inner_stride;
    data = static_cast<char*>(view.data) + start * (bf16 ? 2 : 4);
    row_stride = view.row_stride;
    col_stride = view.col_stride;
  }

  // A matrix without rows and columns.
  static __device__ __forceinline__ Matrix empty() {
    Matrix result;
    result.data = nullptr;
    result.row_stride = result.col_stride = 0;
    result.rows = result.cols = 0;
    result.bf16 = false;
    result.aligned = true;
    return result;
  }

  // The address of the first element of a contiguous row.
  template <class Element>
  __device__ __forceinline__ Element* row(int row) const {
    Element* const element = static_cast<Element*>(data) + row * row_stride;
    __builtin_assume(__isGlobal(element));
    return element;
  }

  // The address of the element (row, col), known to be global, so that accesses need not test the space.
  template <class Element>
  __device__ __forceinline__ Element* at(int row, int col) const {
    Element* const element = static_cast<Element*>(data) + offset(row, col);
    __builtin_assume(__isGlobal(element));
    return element;
  }

  // True if rows consist of whole groups of four contiguous elements, each aligned to its size.
  __device__ __forceinline__ bool in_fours() const { return aligned && cols % 4 == 0; }

  // The part of this matrix from (row, col) on, with at most `count_rows` x `count_cols` elements.
  __device__ __forceinline__ Matrix part(int row, int col, int count_rows, int count_cols) const {
    Matrix result = *this;
    result.data = static_cast<char*>(data) + offset(row, col) * (bf16 ? 2 : 4);
    result.rows = min(count_rows, rows - row);
    result.cols = min(count_cols, cols - col);
    result.aligned = aligned && col % 8 == 0;
    return result;
  }

  __device__ __forceinline__ int64_t offset(int row, int col) const {
    return row * row_stride + col * col_stride;
  }

  __device__ __forceinline__ float read(int row, int col) const {
    if (row >= rows || col >= cols) return 0;
    return bf16 ? __bfloat162float(*at<const __nv_bfloat16>(row, col)) : *at<const float>(row, col);
  }

  // Writes the elements (row, col) to (row, col + 3) that are inside the matrix, in its dtype; col is
  // divisible by 4.
  __device__ __forceinline__ void write_four(int row, int col, const float (&four)[4]) const {
    if (aligned && !bf16 && cols % 4 == 0) {
      if (row >= rows || col >= cols) return;
      *reinterpret_cast<float4*>(at<float>(row, col)) = {four[0], four[1], four[2], four[3]};
    } else {
      write(row, col, {four[0], four[1]});
      write(row, col + 2, {four[2], four[3]});
    }
  }

  // Writes the elements (row, col) and (row, col + 1) that are inside the matrix, in its dtype.
  __device__ __forceinline__ void write(int row, int col, float2 pair) const {
    if (row >= rows) return;
    if (col < cols) store(row, col, pair.x);
    if (col + 1 < cols) store(row, col + 1, pair.y);
  }

  // Writes the float32 elements (row, col) and (row, col + 1) that are inside the matrix; col is even.
  __device__ __forceinline__ void write_pair(int row, int col, float2 pair) const {
    if (row >= rows) return;
    if (aligned && col + 1 < cols) {
      *reinterpret_cast<float2*>(at<float>(row, col)) = pair;
    } else {
      if (col < cols) *at<float>(row, col) = pair.x;
      if (col + 1 < cols) *at<float>(row, col + 1) = pair.y;
    }
  }

  // Writes those of the elements (row, col) and (row, col + 1) of a symmetric matrix that are on or below the
  // diagonal, and their mirror images; row < rows, col is even and at most `row`.
  __device__ __forceinline__ void write_symmetric(int row, int col, float2 pair) const {
    if (!bf16 && aligned && col < row) {
      *reinterpret_cast<float2*>(at<float>(row, col)) = pair;
    } else {
      store(row, col, pair.x);
      if (col < row) store(row, col + 1, pair.y);
    }
    if (col < row) store(col, row, pair.x);
    if (col + 1 < row) store(col + 1, row, pair.y);
  }

  // Writes one element in the dtype of the matrix.
  __device__ __forceinline__ void store(int row, int col, float value) const {
    if (bf16) {
      *at<__nv_bfloat16>(row, col) = __float2bfloat16_rn(value);
    } else {
      *at<float>(row, col) = value;
    }
  }

  // Reads the same two elements; zero above the diagonal, where another thread may be writing.
  __device__ __forceinline__ float2 read_symmetric(int row, int col) const {
    return col < row ? read_pair(row, col) : float2{*at<const float>(row, col), 0};
  }

  __device__ __forceinline__ float2 read_pair(int row, int col) const {
    if (!bf16 && aligned && row < rows && col + 1 < cols) {
      return *reinterpret_cast<const float2*>(at<const float>(row, col));
    }
    return {read(row, col), read(row, col + 1)};
  }
};

// The type of four contiguous elements in memory.
template <class Element>
struct FourOf;
template <>
struct FourOf<float> {
  using Type = float4;
};
template <>
struct FourOf<__nv_bfloat16> {
  using Type = uint2;
};

__device__ __forceinline__ void unpack(float4 four, float (&to)[4]) {
  to[0] = four.x, to[1] = four.y, to[2] = four.z, to[3] = four.w;
}

__device__ __forceinline__ void unpack(uint2 four, float (&to)[4]) {
  to[0] = __uint_as_float(four.x << 16), to[1] = __uint_as_float(four.x & 0xffff0000u);
  to[2] = __uint_as_float(four.y << 16), to[3] = __uint_as_float(four.y & 0xffff0000u);
}

// Reads four contiguous elements at `from`, or zeros.
template <class Element>
__device__ __forceinline__ void read_four(const Element* from, bool inside, float (&to)[4]) {
  typename FourOf<Element>::Type four{};
  if (inside) four = *reinterpret_cast<const typename FourOf<Element>::Type*>(from);
  unpack(four, to);
}

// Copies four elements from (row, col) on, col a multiple of 4, to 16 bytes of shared memory as float32. The
// copy of float32 is asynchronous and completes with its group.
__device__ __forceinline__ void copy_four(Shared to, const Matrix& from, int row, int col) {
  const bool inside = row < from.rows;
  if (from.bf16) {
    float four[4];
    if (from.aligned && inside && col + 4 <= from.cols) {
      read_four(from.at<const __nv_bfloat16>(row, col), true, four);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) four[i] = from.read(row, col + i);
    }
    memory_at<float4>(to) = {four[0], four[1], four[2], four[3]};
  } else if (from.aligned) {
    const int count = inside ? max(0, min(4, from.cols - col)) : 0;
    copy_async<16>(to, count ? from.at<float>(row, col) : from.data, 4 * count);
  } else {
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const bool exists = inside && col + i < from.cols;
      copy_async<4>(to + 4 * i, exists ? from.at<float>(row, col + i) : from.data, exists ? 4 : 0);
    }
  }
}

constexpr int kTileChunks = kTileFloats / 4;

// Copies the i-th four elements of the tile at tile coordinates of a matrix. Eight neighbouring lanes fill
// two rows of a tile, and thus all banks, from two sectors of each row.
__device__ __forceinline__ void copy_chunk(Shared tile, const Matrix& from, int tile_row, int tile_col,
                                           int i) {
  const int row = i / 4, col = i % 4 * 4;
  copy_four(tile + 4 * FloatTiles::offset(row, col), from, tile_row * kTile + row, tile_col * kTile + col);
}

// Fills a grid of tile_rows x tile_cols tiles from a matrix, with zeros around it.
template <int kThreads>
__device__ __forceinline__ void copy_grid(Shared tiles, const Matrix& from, int tile_rows, int tile_cols) {
  for (int i = threadIdx.x; i < tile_rows * tile_cols * kTileChunks; i += kThreads) {
    const int tile = i / kTileChunks;
    copy_chunk(tiles + tile * kTileBytes, from, tile / tile_cols, tile % tile_cols, i % kTileChunks);
  }
}

// Completes the copies of the CTA's threads and makes them visible to all.
__device__ __forceinline__ void finish_copies() {
  copy_async_commit();
  copy_async_wait<0>();
  __syncthreads();
}

}  // namespace kradagrad::cuda
