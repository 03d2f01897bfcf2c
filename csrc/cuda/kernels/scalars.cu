// observe_gradients, scale_updates: a few numbers for each of M matrices (formulas in csrc/scalar_rules.h),
// one thread a matrix. Their time is that of a launch; as torch's operations they would be some ninety.
#include "scalars.h"

namespace kradagrad::cuda {
namespace {

__device__ __forceinline__ int64_t own_matrix() {
  return static_cast<int64_t>(blockIdx.x) * kScalarThreads + threadIdx.x;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kScalarThreads) observe_gradients(const ObserveGradients in) {
  const int64_t i = own_matrix();
  if (i >= in.count) return;
  observe_matrix(in.scalars[i], in.coefficients + kCoefficients * i, in.active[i], in.restarts[i],
                 in.norms[i], in.numel[i], in.present[i], *in.weight_decay, in.rule);
}

extern "C" __global__ void __launch_bounds__(kScalarThreads) scale_updates(const ScaleUpdates in) {
  const int64_t i = own_matrix();
  if (i >= in.count) return;
  scale_matrix(in.coefficients + kCoefficients * i, in.scalars[i], in.graft_norms[i], in.update_norms[i],
               in.numel[i], in.preconditioned[i], in.rule);
}

}  // namespace kradagrad::cuda
