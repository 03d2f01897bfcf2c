// Sums in a fixed order: the same bits on every run.
#pragma once

namespace kradagrad::cuda {

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(0xffffffffu, value, distance);
  }
  return value;
}

// The CTA's sum, for every thread. `scratch`: one float a warp, free again after the next barrier.
template <int kWarps>
__device__ __forceinline__ float cta_sum(float value, float* scratch) {
  value = warp_sum(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) sum += scratch[i];
  return sum;
}

}  // namespace kradagrad::cuda
