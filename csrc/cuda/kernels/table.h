// What a launch knows about its data: plain structs that the host fills and kernels read from global memory,
// so that one launch serves blocks of any number, shape and layout. Strides are in elements.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define KRADAGRAD_HOST_DEVICE __host__ __device__
#else
#define KRADAGRAD_HOST_DEVICE
#endif

namespace kradagrad::cuda {

// Blocks of one tensor: block `first + i` has row 0 at data + (i / inner) outer_stride + (i % inner)
// inner_stride.
struct View {
  void* data;
  int64_t first;
  int64_t inner;
  int64_t outer_stride, inner_stride;
  int64_t row_stride, col_stride;
};

// One matrix for every block of a group: views in the order of `first`.
struct Matrices {
  int32_t first_view;
  int32_t views;
  int32_t bf16;     // bfloat16, else float32
  int32_t aligned;  // rows start at multiples of 16 bytes and are contiguous, in every view
};

// A group of the kron step: N blocks [m, n].
struct KronGroup {
  int64_t first_cta;    // of the resident kernel, one CTA a block
  int64_t first_block;  // of the group, among all groups'
  int64_t blocks;
  int32_t m, n;
  Matrices left, right, left_root, right_root, grad, direction, out;
  float* left_statistics;  // [N, 2]: mean of tr(S) / d, fallbacks; null: this side has no factor
  float* right_statistics;
};

enum class FactorScale : int32_t { kTraceDim, kTrace, kProduct, kFrobenius, kSchatten4 };

// The scalars of a factor update (kradagrad_ext/backends/base.py).
struct FactorRule {
  float decay, weight, damping;
  FactorScale scale;
  int32_t refine;
};

// The precision's name is part of every kernel's.
enum class Precision : int32_t { kBf16x3, kTf32x3, kBf16x6, kFp32 };

// Columns of an unfolding [d, k] that one update takes at once.
constexpr int kLeastChunk = 64;
KRADAGRAD_HOST_DEVICE constexpr int chunk_columns(int d, int k, int refine) {
  const int limit = d > kLeastChunk ? d : kLeastChunk;
  return refine > 0 && k > limit ? limit : k;
}

}  // namespace kradagrad::cuda
