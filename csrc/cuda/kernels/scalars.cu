// guard_gradients, scale_updates: a few numbers for each of M matrices (formulas in csrc/scalar_rules.h).
// guard_gradients has one thread per matrix. scale_updates has one CTA per matrix, which first adds up in
// float64 the norms of the matrix's spans and blocks; each thread adds every kScalarThreads-th. Their time is
// that of a launch; in torch operations they would be about ninety.
#include "reduce.cuh"
#include "scalars.h"

namespace kradagrad::cuda {
namespace {

struct Norms {
  float graft, update;
};

// Squared norms of matrix i: sums over its spans and blocks, in a fixed order; all threads must take part.
__device__ __forceinline__ Norms norms_of(const ScaleUpdates& in, int64_t i) {
  constexpr int kWarps = kScalarThreads / 32;
  __shared__ double grafts[kWarps], updates[kWarps];
  double graft = 0, update = 0;
  const int64_t spans = in.graft_offsets[i + 1], blocks = in.update_offsets[i + 1];
  for (int64_t span = in.graft_offsets[i] + threadIdx.x; span < spans; span += kScalarThreads) {
    graft += in.graft_norms[span];
  }
  for (int64_t at = in.update_offsets[i] + threadIdx.x; at < blocks; at += kScalarThreads) {
    update += in.update_norms[in.update_order[at]];
  }
  graft = warp_sum(graft);
  update = warp_sum(update);
  if (threadIdx.x % 32 == 0) {
    grafts[threadIdx.x / 32] = graft;
    updates[threadIdx.x / 32] = update;
  }
  __syncthreads();
  graft = update = 0;
  for (int warp = 0; warp < kWarps; ++warp) {
    graft += grafts[warp];
    update += updates[warp];
  }
  return {static_cast<float>(graft), static_cast<float>(update)};
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kScalarThreads) guard_gradients(const GuardGradients in) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kScalarThreads + threadIdx.x;
  if (i >= in.count) return;
  guard_matrix(in.scalars[i], in.coefficients + kCoefficients * i, in.active[i], in.restarts[i], in.norms[i],
               in.numel[i], in.present[i], *in.weight_decay, in.rule);
}

extern "C" __global__ void __launch_bounds__(kScalarThreads) scale_updates(const ScaleUpdates in) {
  const int64_t i = blockIdx.x;
  const Norms norms = norms_of(in, i);
  if (threadIdx.x != 0) return;
  scale_matrix(in.coefficients + kCoefficients * i, in.scalars[i], norms.graft, norms.update, in.numel[i],
               in.preconditioned[i], in.rule);
}

}  // namespace kradagrad::cuda
