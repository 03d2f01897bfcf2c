// The maximum of a team's numbers.
#pragma once

#include "reduce.cuh"

namespace kradagrad::cuda {

// The maximum of the team's non-negative numbers, for every thread; otherwise as `team_sum`.
template <int kWarps>
__device__ __forceinline__ float team_max(float value) {
  __shared__ float partial[kMostWarps];
#pragma unroll
  for (int distance = 16; distance > 0; distance /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffffu, value, distance));
  }
  __syncthreads();
  const int warp = threadIdx.x / 32;
  if (threadIdx.x % 32 == 0) partial[warp] = value;
  __syncthreads();
  float most = 0;
#pragma unroll
  for (int i = 0; i < kWarps; ++i) most = fmaxf(most, partial[warp / kWarps * kWarps + i]);
  return most;
}

}  // namespace kradagrad::cuda
