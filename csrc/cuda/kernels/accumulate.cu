// accumulate, for the elements of all parameters in one launch:
//
//   g = c3 grad + l2 p;   m = beta1 m + (1 - beta1) g;   d = m, beta1 m + (1 - beta1) g (nesterov), or g
//   v = beta2 v + weight2 g^2;   partial = |graft|^2 of the span,  graft = c0 d / (sqrt(c1 v) + c2), or c0 d
//
// sum_spans: a parameter's norm from its spans' partial sums, in a fixed order; one CTA a parameter. Threads
// take four neighbouring elements at a time (elementwise.cuh). Traffic: every tensor once.
#include "elementwise.cuh"
#include "reduce.cuh"

namespace kradagrad::cuda {
namespace {

// One quadruple; returns its share of |graft|^2.
template <class Position>
__device__ __forceinline__ float accumulate_four(const Accumulate& in, const Position& at, const float* c) {
  const Parameter& of = at.parameter;
  float g[kVector], d[kVector], v[kVector];
  read(g, of.grad, at);
  for (int i = 0; i < kVector; ++i) g[i] *= c[3];
  if (in.l2 != 0) {
    float p[kVector];
    read(p, of.param, at);
    for (int i = 0; i < kVector; ++i) g[i] += in.l2 * p[i];
  }
  for (int i = 0; i < kVector; ++i) d[i] = g[i];
  if (of.momentum.data) {
    read(d, of.momentum, at);
    for (int i = 0; i < kVector; ++i) d[i] = in.beta1 * d[i] + in.rest1 * g[i];
    write(d, of.momentum, at);
    for (int i = 0; i < kVector && in.nesterov; ++i) d[i] = in.beta1 * d[i] + in.rest1 * g[i];
  }
  if (of.direction.data) write(d, of.direction, at);
  if (of.second_moment.data) {
    read(v, of.second_moment, at);
    for (int i = 0; i < kVector; ++i) v[i] = in.beta2 * v[i] + in.weight2 * g[i] * g[i];
    write(v, of.second_moment, at);
  }
  float sum = 0;
  for (int i = 0; i < kVector && i < at.count; ++i) {
    const float graft = of.second_moment.data ? adaptive(d[i], v[i], c) : c[0] * d[i];
    sum += graft * graft;
  }
  return sum;
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kElementThreads, 4) accumulate(const Accumulate in) {
  const int index = own_parameter(in.parameters, in.count);
  if (!in.active[index]) return;
  __shared__ Parameter parameter;
  fetch(parameter, in.parameters[index]);
  float sum = 0;
  for_each_position(parameter,
                    [&](const auto& at) { sum += accumulate_four(in, at, in.coefficients + 4 * index); });
  sum = team_sum<kElementThreads / 32>(sum);
  if (threadIdx.x == 0) in.partial[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(kElementThreads) sum_spans(const SumSpans in) {
  const Parameter& of = in.parameters[blockIdx.x];
  const int64_t spans = in.active[blockIdx.x] ? (of.numel + kSpan - 1) / kSpan : 0;
  float sum = 0;
  for (int64_t i = threadIdx.x; i < spans; i += kElementThreads) sum += in.partial[of.first_cta + i];
  sum = team_sum<kElementThreads / 32>(sum);
  if (threadIdx.x == 0) in.norms[blockIdx.x] = sum;
}

}  // namespace kradagrad::cuda
