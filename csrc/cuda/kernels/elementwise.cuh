// Reading and writing of elements of any layout, four at a time where they are contiguous, and how the CTAs
// of a launch share out the elements of all parameters: a CTA takes a span of kSpan elements of one
// parameter.
#pragma once

#include <cuda_bf16.h>

#include "elementwise.h"
#include "memory.cuh"

namespace kradagrad::cuda {

constexpr int kVector = 4;

// Up to four neighbouring elements of a parameter.
struct Position {
  const Parameter& parameter;
  int64_t index;
  int count;

  __device__ __forceinline__ bool whole() const { return parameter.flat && count == kVector; }

  __device__ __forceinline__ int64_t offset(const Elements& of, int i) const {
    int64_t rest = index + i, offset = 0;
    for (int dim = parameter.dims - 1; dim > 0; --dim) {
      offset += rest % parameter.sizes[dim] * of.strides[dim];
      rest /= parameter.sizes[dim];
    }
    return offset + rest * of.strides[0];
  }
};

__device__ __forceinline__ void read(float (&values)[kVector], const Elements& from, const Position& at) {
  if (at.whole() && from.bf16) {
    const auto* const data = static_cast<const __nv_bfloat16*>(from.data) + at.index;
    const uint2 packed = *reinterpret_cast<const uint2*>(data);
    values[0] = __uint_as_float(packed.x << 16);
    values[1] = __uint_as_float(packed.x & 0xffff0000u);
    values[2] = __uint_as_float(packed.y << 16);
    values[3] = __uint_as_float(packed.y & 0xffff0000u);
  } else if (at.whole()) {
    const float4 four = *reinterpret_cast<const float4*>(static_cast<const float*>(from.data) + at.index);
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i >= at.count) {
        values[i] = 0;
      } else if (from.bf16) {
        values[i] = __bfloat162float(static_cast<const __nv_bfloat16*>(from.data)[at.offset(from, i)]);
      } else {
        values[i] = static_cast<const float*>(from.data)[at.offset(from, i)];
      }
    }
  }
}

__device__ __forceinline__ void write(const float (&values)[kVector], const Elements& to,
                                      const Position& at) {
  if (at.whole() && to.bf16) {
    const uint2 packed = {round_bf16x2(values[0], values[1]), round_bf16x2(values[2], values[3])};
    *reinterpret_cast<uint2*>(static_cast<__nv_bfloat16*>(to.data) + at.index) = packed;
  } else if (at.whole()) {
    *reinterpret_cast<float4*>(static_cast<float*>(to.data) + at.index) = {values[0], values[1], values[2],
                                                                           values[3]};
  } else {
#pragma unroll
    for (int i = 0; i < kVector; ++i) {
      if (i >= at.count) break;
      if (to.bf16) {
        static_cast<__nv_bfloat16*>(to.data)[at.offset(to, i)] = __float2bfloat16(values[i]);
      } else {
        static_cast<float*>(to.data)[at.offset(to, i)] = values[i];
      }
    }
  }
}

// The index of the parameter of this CTA's span.
__device__ __forceinline__ int own_parameter(const Parameter* parameters, int count) {
  return search(count, blockIdx.x, [&](int i) { return parameters[i].first_cta; });
}

// Calls use(Position) for the elements of this CTA's span, kVector at a time.
template <class Use>
__device__ __forceinline__ void for_each_position(const Parameter& parameter, const Use& use) {
  const int64_t begin = (blockIdx.x - parameter.first_cta) * kSpan;
  const int64_t end = min(begin + kSpan, parameter.numel);
  for (int64_t index = begin + threadIdx.x * kVector; index < end; index += kElementThreads * kVector) {
    use(Position{parameter, index, static_cast<int>(min(end - index, static_cast<int64_t>(kVector)))});
  }
}

// c0 d / (sqrt(c1 v) + c2), 0 where the denominator is 0.
__device__ __forceinline__ float adaptive(float d, float v, const float* c) {
  const float denominator = sqrtf(c[1] * v) + c[2];
  return denominator > 0 ? c[0] * d / denominator : 0;
}

}  // namespace kradagrad::cuda
