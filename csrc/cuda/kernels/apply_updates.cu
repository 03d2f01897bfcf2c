// The kernel of apply_updates_: the elements of all parameters in one launch:
//
//   u = c3 update, or c0 d / (sqrt(c1 v) + c2) or c0 d if there is no update or c3 is not finite
//   bits(q) = bits(p) + residual;   u = u + c8 q;   b = momentum b + u, u = b (nesterov: u + momentum b)
//   q = (1 - lr c9) q - lr min(max(u, -c5), c5);   p = q in its storage dtype
//
// If p is bfloat16, c6 > 0 and there are no residuals, q is rounded by chance.
//
// Threads take four neighbouring elements at a time (elementwise.cuh). Traffic: the tensors that the formula
// needs, once; nothing for the spans of inactive parameters.
#include "elementwise.cuh"

namespace kradagrad::cuda {
namespace {

// Reads the tensor that the update is made of, mixes its bits into `chances`, and computes the update u.
template <class Position>
__device__ __forceinline__ void finished_update(float (&u)[Position::kElements],
                                                uint32_t (&chances)[Position::kElements], const Position& at,
                                                const float* c) {
  constexpr int kElements = Position::kElements;
  const Parameter& of = at.parameter;
  if (of.update.data && isfinite(c[3])) {
    read(u, of.update, at);
    for (int i = 0; i < kElements; ++i) chances[i] ^= __float_as_uint(u[i]);
    for (int i = 0; i < kElements; ++i) u[i] *= c[3];
    return;
  }
  read(u, of.direction, at);
  for (int i = 0; i < kElements; ++i) chances[i] ^= __float_as_uint(u[i]);
  if (of.second_moment.data) {
    float v[kElements];
    read(v, of.second_moment, at);
    for (int i = 0; i < kElements; ++i) u[i] = adaptive(u[i], v[i], c);
  } else {
    for (int i = 0; i < kElements; ++i) u[i] *= c[0];
  }
}

// One of the bfloat16 neighbours of a value, chosen by chance (kradagrad_ext/backends/base.py).
__device__ __forceinline__ float rounded_by_chance(float value, uint32_t mixed) {
  constexpr uint32_t kLargestBf16 = 0x7f7f0000;
  const uint32_t bits = __float_as_uint(value);
  mixed = (mixed ^ mixed >> 16) * 0x85ebca6bu;
  mixed = (mixed ^ mixed >> 13) * 0xc2b2ae35u;
  mixed ^= mixed >> 16;
  const uint32_t rounded = (bits + (mixed & 0xffffu)) & 0xffff0000u;
  return (bits & 0x7fffffffu) < kLargestBf16 ? __uint_as_float(rounded) : value;
}

template <class Position>
__device__ __forceinline__ void step_elements(const ApplyUpdates& in, const Position& at, const float* c,
                                              float lr) {
  constexpr int kElements = Position::kElements;
  const Parameter& of = at.parameter;
  float u[kElements], p[kElements];
  uint32_t chances[kElements];
  read(p, of.param, at);
  const uint32_t seed = static_cast<uint32_t>(c[6]) * 0x9e3779b9u;
  for (int i = 0; i < kElements; ++i) chances[i] = seed ^ __float_as_uint(p[i]) * 0x85ebca77u;
  finished_update(u, chances, at, c);
  if (of.residual.data) {
    uint32_t residuals[kElements];
    read_halves(residuals, of.residual, at);
    for (int i = 0; i < kElements; ++i) {
      const int residual = p[i] != 0 ? static_cast<int16_t>(residuals[i]) : 0;
      p[i] = __uint_as_float(__float_as_uint(p[i]) + residual);
    }
  }
  for (int i = 0; i < kElements; ++i) u[i] += c[8] * p[i];
  if (of.momentum.data) {
    float b[kElements];
    read(b, of.momentum, at);
    for (int i = 0; i < kElements; ++i) {
      b[i] = in.momentum * b[i] + u[i];
      u[i] = in.nesterov ? u[i] + in.momentum * b[i] : b[i];
    }
    write(b, of.momentum, at);
  }
  for (int i = 0; i < kElements; ++i) {
    const float bounded = u[i] < -c[5] ? -c[5] : u[i] > c[5] ? c[5] : u[i];  // NaN stays
    p[i] = (1 - lr * c[9]) * p[i] - lr * bounded;
  }
  if (of.residual.data) {
    uint32_t residuals[kElements];
    for (int i = 0; i < kElements; ++i) {
      const uint32_t bits = __float_as_uint(p[i]), upper = (bits + 0x8000u) & 0xffff0000u;
      residuals[i] = bits - upper;
      p[i] = __uint_as_float(upper);
    }
    write_halves(residuals, of.residual, at);
  } else if (of.param.bf16 && c[6] > 0) {
    for (int i = 0; i < kElements; ++i) p[i] = rounded_by_chance(p[i], chances[i]);
  }
  write(p, of.param, at);
}

}  // namespace

extern "C" __global__ void __launch_bounds__(kElementThreads, 6) apply_updates(const ApplyUpdates in) {
  const int index = parameter_of(in.parameters, in.count, blockIdx.x);
  if (!in.active[index]) return;
  __shared__ Parameter parameter;
  fetch(parameter, in.parameters[index]);
  const float lr = *in.lr;
  for_each_position(parameter, blockIdx.x, [&](const auto& at) {
    step_elements(in, at, in.coefficients + kCoefficients * index, lr);
  });
}

}  // namespace kradagrad::cuda
