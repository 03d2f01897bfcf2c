// parameter_step, for the elements of all parameters in one launch:
//
//   u = c3 update, or c0 d / (sqrt(c1 v) + c2) or c0 d where there is no update or c3 is not finite
//   u = u + l2 p;   b = momentum b + u, u = b (nesterov: u + momentum b);   p = (1 - lr decay) p - lr u
//
// Threads take four neighbouring elements at a time (elementwise.cuh). Traffic: the tensors that the formula
// needs, once; a span of a parameter that is not active is left alone.
#include "elementwise.cuh"

namespace kradagrad::cuda {
namespace {

template <class Position>
__device__ __forceinline__ void finished_update(float (&u)[Position::kElements], const Position& at,
                                                const float* c) {
  constexpr int kElements = Position::kElements;
  const Parameter& of = at.parameter;
  if (of.update.data && isfinite(c[3])) {
    read(u, of.update, at);
    for (int i = 0; i < kElements; ++i) u[i] *= c[3];
    return;
  }
  read(u, of.direction, at);
  if (of.second_moment.data) {
    float v[kElements];
    read(v, of.second_moment, at);
    for (int i = 0; i < kElements; ++i) u[i] = adaptive(u[i], v[i], c);
  } else {
    for (int i = 0; i < kElements; ++i) u[i] *= c[0];
  }
}

template <class Position>
__device__ __forceinline__ void step_elements(const ParameterStep& in, const Position& at, const float* c,
                                              float lr) {
  constexpr int kElements = Position::kElements;
  const Parameter& of = at.parameter;
  float u[kElements], p[kElements];
  finished_update(u, at, c);
  read(p, of.param, at);
  for (int i = 0; i < kElements; ++i) u[i] += in.l2 * p[i];
  if (of.momentum.data) {
    float b[kElements];
    read(b, of.momentum, at);
    for (int i = 0; i < kElements; ++i) {
      b[i] = in.momentum * b[i] + u[i];
      u[i] = in.nesterov ? u[i] + in.momentum * b[i] : b[i];
    }
    write(b, of.momentum, at);
  }
  for (int i = 0; i < kElements; ++i) p[i] = (1 - lr * in.decay) * p[i] - lr * u[i];
  write(p, of.param, at);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kElementThreads, 6) parameter_step(const ParameterStep in) {
  const int index = parameter_of(in.parameters, in.count, blockIdx.x);
  if (!in.active[index]) return;
  __shared__ Parameter parameter;
  fetch(parameter, in.parameters[index]);
  const float lr = *in.lr;
  for_each_position(parameter, blockIdx.x,
                    [&](const auto& at) { step_elements(in, at, in.coefficients + 4 * index, lr); });
}

}  // namespace kradagrad::cuda
