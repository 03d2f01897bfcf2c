// Sums in a fixed order, with the same bits on every run.
#pragma once

namespace kradagrad::cuda {

template <class T>
__device__ __forceinline__ T warp_sum(T value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

constexpr int kMostWarps = 8;  // per CTA

// The sum over the thread's team of kWarps warps, for every thread; all threads of the CTA must take part.
template <int kWarps>
__device__ __forceinline__ float team_sum(float value) {
  __shared__ float partial[kMostWarps];
  value = warp_sum(value);
  __syncthreads();  // all reads of the last sum's values are complete
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) partial[warp] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += partial[warp / kWarps * kWarps + i];
  return sum;
}

}  // namespace kradagrad::cuda
