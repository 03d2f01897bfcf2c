// The largest of a CTA's numbers.
#pragma once

namespace kradagrad::cuda {

// The CTA's maximum of numbers that are not negative, for every thread.
// `scratch`: one float a warp, free again after the next barrier.
template <int kWarps>
__device__ __forceinline__ float cta_max(float value, float* scratch) {
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  __syncthreads();
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = value;
  __syncthreads();
  float most = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) most = fmaxf(most, scratch[i]);
  return most;
}

}  // namespace kradagrad::cuda
