// Descriptions of a launch's data: plain structs that the host fills and kernels read from global memory, so
// that one launch processes blocks of any number, shape and layout. Strides are in elements.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define KRADAGRAD_HOST_DEVICE __host__ __device__
#else
#define KRADAGRAD_HOST_DEVICE
#endif

namespace kradagrad::cuda {

// Blocks of one tensor: row 0 of block `first + i` is at data + (i / inner) outer_stride + (i % inner)
// inner_stride.
struct View {
  void* data;
  int64_t first;
  int64_t inner;
  int64_t outer_stride, inner_stride;
  int64_t row_stride, col_stride;
};

// One matrix for every block of a group, by views in the order of `first`.
struct Matrices {
  int32_t first_view;
  int32_t views;
  int32_t bf16;     // bfloat16, else float32
  int32_t aligned;  // rows start at multiples of 16 bytes and are contiguous, in every view
};

// The precision's name is part of a kernel's name.
enum class Precision : int32_t { kBf16x3, kTf32x3, kFp32 };

}  // namespace kradagrad::cuda
