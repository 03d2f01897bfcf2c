// Reading and writing of elements of any layout, four at a time where they are contiguous, and how the CTAs
// of a launch share out the elements of all parameters: a CTA takes a span of kSpan elements of one
// parameter.
#pragma once

#include <cuda_bf16.h>

#include "elementwise.h"
#include "memory.cuh"

namespace kradagrad::cuda {

constexpr int kVector = 4;

// kVector neighbouring elements of a flat parameter: one access for each tensor.
struct Whole {
  const Parameter& parameter;
  int64_t index;
  static constexpr int count = kVector;
};

// Up to kVector elements, of any layout.
struct Ragged {
  const Parameter& parameter;
  int64_t index;
  int count;

  __device__ __forceinline__ int64_t offset(const Elements& of, int i) const {
    int64_t rest = index + i, offset = 0;
#pragma unroll 1
    for (int dim = parameter.dims - 1; dim > 0; --dim) {
      offset += rest % parameter.sizes[dim] * of.strides[dim];
      rest /= parameter.sizes[dim];
    }
    return offset + rest * of.strides[0];
  }
};

template <class T>
__device__ __forceinline__ T* data_of(const Elements& of) {
  void* const data = of.data;
  __builtin_assume(__isGlobal(data));  // or every access would have to find out
  return static_cast<T*>(data);
}

__device__ __forceinline__ void read(float (&values)[kVector], const Elements& from, const Whole& at) {
  if (from.bf16) {
    const uint2 packed = *reinterpret_cast<const uint2*>(data_of<__nv_bfloat16>(from) + at.index);
    values[0] = __uint_as_float(packed.x << 16);
    values[1] = __uint_as_float(packed.x & 0xffff0000u);
    values[2] = __uint_as_float(packed.y << 16);
    values[3] = __uint_as_float(packed.y & 0xffff0000u);
  } else {
    const float4 four = *reinterpret_cast<const float4*>(data_of<float>(from) + at.index);
    values[0] = four.x, values[1] = four.y, values[2] = four.z, values[3] = four.w;
  }
}

__device__ __forceinline__ void read(float (&values)[kVector], const Elements& from, const Ragged& at) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i >= at.count) {
      values[i] = 0;
    } else if (from.bf16) {
      values[i] = __bfloat162float(data_of<__nv_bfloat16>(from)[at.offset(from, i)]);
    } else {
      values[i] = data_of<float>(from)[at.offset(from, i)];
    }
  }
}

__device__ __forceinline__ void write(const float (&values)[kVector], const Elements& to, const Whole& at) {
  if (to.bf16) {
    store_8(data_of<__nv_bfloat16>(to) + at.index,
            {round_bf16x2(values[0], values[1]), round_bf16x2(values[2], values[3])});
  } else {
    store_16(data_of<float>(to) + at.index, {values[0], values[1], values[2], values[3]});
  }
}

__device__ __forceinline__ void write(const float (&values)[kVector], const Elements& to, const Ragged& at) {
#pragma unroll
  for (int i = 0; i < kVector; ++i) {
    if (i >= at.count) break;
    if (to.bf16) {
      data_of<__nv_bfloat16>(to)[at.offset(to, i)] = __float2bfloat16(values[i]);
    } else {
      data_of<float>(to)[at.offset(to, i)] = values[i];
    }
  }
}

// The index of the parameter of this CTA's span.
__device__ __forceinline__ int own_parameter(const Parameter* parameters, int count) {
  return search(count, blockIdx.x, [&](int i) { return parameters[i].first_cta; });
}

// A copy in shared memory, which no store to a tensor can change: it is read once.
__device__ __forceinline__ void fetch(Parameter& own, const Parameter& parameter) {
  static_assert(sizeof(Parameter) % sizeof(int) == 0);
  for (int i = threadIdx.x; i < sizeof(Parameter) / sizeof(int); i += kElementThreads) {
    reinterpret_cast<int*>(&own)[i] = reinterpret_cast<const int*>(&parameter)[i];
  }
  __syncthreads();
}

// Calls use(Whole) or use(Ragged) for the elements of this CTA's span, kVector at a time.
template <class Use>
__device__ __forceinline__ void for_each_position(const Parameter& parameter, const Use& use) {
  const int64_t begin = (blockIdx.x - parameter.first_cta) * kSpan;
  const int64_t end = min(begin + kSpan, parameter.numel);
  for (int64_t index = begin + threadIdx.x * kVector; index < end; index += kElementThreads * kVector) {
    const int count = min(end - index, static_cast<int64_t>(kVector));
    if (parameter.flat && count == kVector) {
      use(Whole{parameter, index});
    } else {
      use(Ragged{parameter, index, count});
    }
  }
}

// c0 d / (sqrt(c1 v) + c2), 0 where the denominator is 0.
__device__ __forceinline__ float adaptive(float d, float v, const float* c) {
  const float denominator = sqrtf(c[1] * v) + c[2];
  return denominator > 0 ? c[0] * d / denominator : 0;
}

}  // namespace kradagrad::cuda
