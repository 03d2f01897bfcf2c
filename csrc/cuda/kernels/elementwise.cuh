// Reading and writing of elements of any layout, four neighbours at a time if they are contiguous. The
// elements of all parameters are distributed in spans of kSpan elements of one parameter.
#pragma once

#include <cuda_bf16.h>

#include "elementwise.h"
#include "memory.cuh"

namespace kradagrad::cuda {

// Elements of a flat parameter, four neighbours at a time: those from `index` on, and those that follow
// kDistance elements later, after one round of the CTA's threads. The reads of both are in flight at once.
struct Whole {
  static constexpr int kFours = 2, kElements = 4 * kFours;
  static constexpr int kDistance = 4 * kElementThreads, kRound = kFours * kDistance;
  const Parameter& parameter;
  int64_t index;
};

// One element, of any layout.
struct Single {
  static constexpr int kElements = 1;
  const Parameter& parameter;
  int64_t index;

  __device__ __forceinline__ int64_t offset(const Elements& of) const {
    int64_t rest = index, offset = 0;
#pragma unroll 1
    for (int dim = parameter.dims - 1; dim > 0; --dim) {
      const int64_t quotient = rest / parameter.sizes[dim];
      offset += (rest - quotient * parameter.sizes[dim]) * of.strides[dim];
      rest = quotient;
    }
    return offset + rest * of.strides[0];
  }
};

template <class T>
__device__ __forceinline__ T* data_of(const Elements& of) {
  void* const data = of.data;
  __builtin_assume(__isGlobal(data));  // else every access would test the address space
  return static_cast<T*>(data);
}

__device__ __forceinline__ void read(float (&values)[Whole::kElements], const Elements& from,
                                     const Whole& at) {
#pragma unroll
  for (int i = 0; i < Whole::kElements; i += 4) {
    const int64_t index = at.index + i / 4 * Whole::kDistance;
    float (&four)[4] = reinterpret_cast<float (&)[4]>(values[i]);
    if (from.bf16) {
      read_four(data_of<__nv_bfloat16>(from) + index, true, four);
    } else {
      read_four(data_of<float>(from) + index, true, four);
    }
  }
}

__device__ __forceinline__ void read(float (&value)[1], const Elements& from, const Single& at) {
  const int64_t offset = at.offset(from);
  value[0] =
      from.bf16 ? __bfloat162float(data_of<__nv_bfloat16>(from)[offset]) : data_of<float>(from)[offset];
}

__device__ __forceinline__ void write(const float (&values)[Whole::kElements], const Elements& to,
                                      const Whole& at) {
#pragma unroll
  for (int i = 0; i < Whole::kElements; i += 4) {
    const int64_t index = at.index + i / 4 * Whole::kDistance;
    if (to.bf16) {
      store_8(data_of<__nv_bfloat16>(to) + index,
              {round_bf16x2(values[i], values[i + 1]), round_bf16x2(values[i + 2], values[i + 3])});
    } else {
      store_16(data_of<float>(to) + index, {values[i], values[i + 1], values[i + 2], values[i + 3]});
    }
  }
}

__device__ __forceinline__ void write(const float (&value)[1], const Elements& to, const Single& at) {
  const int64_t offset = at.offset(to);
  if (to.bf16) {
    data_of<__nv_bfloat16>(to)[offset] = __float2bfloat16(value[0]);
  } else {
    data_of<float>(to)[offset] = value[0];
  }
}

// Reads residuals, each into the lower half of a word.
__device__ __forceinline__ void read_halves(uint32_t (&halves)[Whole::kElements], const Elements& from,
                                            const Whole& at) {
#pragma unroll
  for (int i = 0; i < Whole::kElements; i += 4) {
    const int64_t index = at.index + i / 4 * Whole::kDistance;
    const uint2 four = *reinterpret_cast<const uint2*>(data_of<uint16_t>(from) + index);
    halves[i] = four.x & 0xffffu;
    halves[i + 1] = four.x >> 16;
    halves[i + 2] = four.y & 0xffffu;
    halves[i + 3] = four.y >> 16;
  }
}

__device__ __forceinline__ void read_halves(uint32_t (&half)[1], const Elements& from, const Single& at) {
  half[0] = data_of<uint16_t>(from)[at.offset(from)];
}

__device__ __forceinline__ void write_halves(const uint32_t (&halves)[Whole::kElements], const Elements& to,
                                             const Whole& at) {
#pragma unroll
  for (int i = 0; i < Whole::kElements; i += 4) {
    const int64_t index = at.index + i / 4 * Whole::kDistance;
    store_8(data_of<uint16_t>(to) + index,
            {(halves[i] & 0xffffu) | halves[i + 1] << 16, (halves[i + 2] & 0xffffu) | halves[i + 3] << 16});
  }
}

__device__ __forceinline__ void write_halves(const uint32_t (&half)[1], const Elements& to,
                                             const Single& at) {
  data_of<uint16_t>(to)[at.offset(to)] = static_cast<uint16_t>(half[0]);
}

// The index of a span's parameter.
__device__ __forceinline__ int parameter_of(const Parameter* parameters, int count, int64_t span) {
  return search(count, span, [&](int i) { return parameters[i].first_span; });
}

// Copies a parameter to shared memory, which no store to a tensor can change: it is read once.
__device__ __forceinline__ void fetch(Parameter& copy, const Parameter& parameter) {
  static_assert(sizeof(Parameter) % sizeof(int) == 0);
  for (int i = threadIdx.x; i < sizeof(Parameter) / sizeof(int); i += kElementThreads) {
    reinterpret_cast<int*>(&copy)[i] = reinterpret_cast<const int*>(&parameter)[i];
  }
  __syncthreads();
}

// Calls use(Whole) for whole rounds of a span and use(Single) for its remaining elements.
template <class Use>
__device__ __forceinline__ void for_each_position(const Parameter& parameter, int64_t span, const Use& use) {
  int64_t begin = (span - parameter.first_span) * kSpan;
  const int64_t end = min(begin + kSpan, parameter.numel);
#pragma unroll 1
  for (; parameter.flat && begin + Whole::kRound <= end; begin += Whole::kRound) {
    use(Whole{parameter, begin + 4 * threadIdx.x});
  }
#pragma unroll 1
  for (int64_t i = begin + threadIdx.x; i < end; i += kElementThreads) use(Single{parameter, i});
}

// c0 d / (sqrt(c1 v) + c2), or 0 if the denominator is 0.
__device__ __forceinline__ float adaptive(float d, float v, const float* c) {
  const float denominator = sqrtf(c[1] * v) + c[2];
  return denominator > 0 ? c[0] * d / denominator : 0;
}

}  // namespace kradagrad::cuda
