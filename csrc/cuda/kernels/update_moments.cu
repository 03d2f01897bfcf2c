// The kernel of update_moments_: the elements of all parameters in one launch:
//
//   g = c3 (grad + c7 p);   m = beta1 c4 m + (1 - beta1) g
//   d = m, beta1 m + (1 - beta1) g (nesterov), or g;   v = beta2 c4^2 v + weight2 g^2
//   graft_norm = |graft|^2 of the span,  graft = c0 d / (sqrt(c1 v) + c2), or c0 d
//
// Threads take four neighbouring elements at a time (elementwise.cuh). Traffic: every tensor once.
//
// CTAs take spans in rounds: CTA i takes spans i, i + grid, ... One CTA per multiprocessor is enough to keep
// memory busy if elements are contiguous: each thread has all its reads of eight elements in flight at once,
// 12 KB per CTA. The kernel runs at the same time as resident_update and fits into the registers that this
// leaves free: 96 a thread, at one warp for each scheduler.
#include "elementwise.cuh"
#include "reduce.cuh"

namespace kradagrad::cuda {
namespace {

// Returns the elements' share of |graft|^2.
template <class Position>
__device__ __forceinline__ float update_moments_elements(const UpdateMoments& in, const Position& at,
                                                         const float* c) {
  constexpr int kElements = Position::kElements;
  const Parameter& of = at.parameter;
  float g[kElements], d[kElements], v[kElements];
  read(g, of.grad, at);
  if (of.momentum.data) read(d, of.momentum, at);
  if (of.second_moment.data) read(v, of.second_moment, at);
  if (c[7] != 0) {
    float p[kElements];
    read(p, of.param, at);
    for (int i = 0; i < kElements; ++i) g[i] += c[7] * p[i];
  }
  for (int i = 0; i < kElements; ++i) g[i] *= c[3];
  if (of.momentum.data) {
    const float beta1 = in.beta1 * c[4];
    for (int i = 0; i < kElements; ++i) d[i] = beta1 * d[i] + in.rest1 * g[i];
    write(d, of.momentum, at);
    for (int i = 0; i < kElements && in.nesterov; ++i) d[i] = in.beta1 * d[i] + in.rest1 * g[i];
  } else {
    for (int i = 0; i < kElements; ++i) d[i] = g[i];
  }
  if (of.direction.data) write(d, of.direction, at);
  if (of.second_moment.data) {
    const float beta2 = in.beta2 * c[4] * c[4];
    for (int i = 0; i < kElements; ++i) v[i] = beta2 * v[i] + in.weight2 * g[i] * g[i];
    write(v, of.second_moment, at);
  }
  float sum = 0;
  for (int i = 0; i < kElements; ++i) {
    const float graft = of.second_moment.data ? adaptive(d[i], v[i], c) : c[0] * d[i];
    sum += graft * graft;
  }
  return sum;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kElementThreads, 5) update_moments(const UpdateMoments in) {
  __shared__ Parameter parameter;
#pragma unroll 1
  for (int64_t span = blockIdx.x; span < in.spans; span += gridDim.x) {
    const int index = parameter_of(in.parameters, in.count, span);
    if (!in.active[index]) {
      if (threadIdx.x == 0 && in.graft_norms) in.graft_norms[span] = 0;
      continue;
    }
    fetch(parameter, in.parameters[index]);
    float sum = 0;
    for_each_position(parameter, span, [&](const auto& at) {
      sum += update_moments_elements(in, at, in.coefficients + kCoefficients * index);
    });
    sum = team_sum<kElementThreads / 32>(sum);
    if (threadIdx.x == 0 && in.graft_norms) in.graft_norms[span] = sum;
  }
}

}  // namespace kradagrad::cuda
