// Formulas on the rule's scalars and a side's statistics that all kernels of the square-root form share
// (kradagrad_ext/backends/base.py).
#pragma once

#include "square_root.h"

namespace kradagrad::cuda {

enum Column { kRms, kWeight, kWhitened, kFallbacks, kColumns };

// 2^exponent of a positive float, between 2^-120 and 2^120.
__device__ __forceinline__ float power_of_two_below(float value) {
  const int exponent = (__float_as_int(value) >> 23) - 127;
  return __int_as_float((min(max(exponent, -120), 120) + 127) << 23);
}

// 1 / power, for a power of two from `power_of_two_below`.
__device__ __forceinline__ float inverse_power_of_two(float power) {
  return __int_as_float((254 << 23) - __float_as_int(power));
}

// sqrt((x a^2 + y b^2) / (x + y)) for non-negative numbers, without computing a^2 or b^2, which may leave the
// range of float32.
__device__ __forceinline__ float mean_of(float x, float a, float y, float b) {
  const float most = fmaxf(a, b);
  if (most == 0) return 0;
  const float p = a / most, q = b / most;
  return most * sqrtf((x * p * p + y * q * q) / (x + y));
}

// A side's statistics after a gradient, from its `old` ones, and if the block takes part. `scale`: the
// gradient's scale; `stretch`: |U|^2 / |G|^2, 1 without coupling.
__device__ __forceinline__ BlockUpdate next_statistics(const SquareRootRule& rule, const float* old,
                                                       const GradientNorm& norm, float scale, float stretch,
                                                       int d, int k) {
  BlockUpdate update{Readiness::kNone, 0, 0, 0, 0};
  if (norm.unit == 0) return update;
  update.readiness = Readiness::kCounted;
  if (!isfinite(norm.sum)) return update;
  const float elements = static_cast<float>(d) * static_cast<float>(k);
  const float held = rule.decay * old[kWeight];
  update.weight = held + rule.weight;
  update.rms = mean_of(held, old[kRms], rule.weight, scale * norm.unit * sqrtf(norm.sum / elements));
  update.scale = scale * sqrtf(rule.weight / stretch);
  update.whitened = old[kWeight] / (rule.weight * static_cast<float>(d)) * stretch;
  if (stretch == 0) update.readiness = Readiness::kNone;
  if (stretch > 0 && isfinite(stretch) && isfinite(update.rms)) update.readiness = Readiness::kReady;
  return update;
}

// A new F is this number times I.
__device__ __forceinline__ float start_of(const SquareRootRule& rule, float rms, int k) {
  return 1 / (rms * sqrtf(rule.prior * static_cast<float>(k)));
}

// The ratio of the square root of the damping to rms'.
__device__ __forceinline__ float damping_root(const SquareRootRule& rule, int k) {
  return sqrtf(rule.damping * static_cast<float>(k));
}

// The iteration for R near H^(-1/2), H = decay I + M, t = decay + |M|_F, Y0 = H / t:
//
//   T_i = a_i I - b_i Z Y,  Y <- Y T_i,  Z <- T_i Z;   a = 1.5 s,  b = 0.5 s^3,  s^2 = 3 / (1 + f + f^2)
//   f = sqrt(decay / t) initially, then f <- min(1, f (a - b f^2))
//   restored = 1 / (sqrt(decay) times the product of all a - b f^2)
struct Iteration {
  float t, a = 0, b = 0;  // coefficients of step `step`
  float a1 = 0, b1 = 0;   // coefficients of the first step
  float restored;         // R / Z after all steps

  // `norm`: |M|_F.
  __device__ __forceinline__ Iteration(const SquareRootRule& rule, float norm, int step) {
    t = rule.decay + norm;
    float f = sqrtf(rule.decay / t), at_decay = 1;
    for (int i = 0; i < rule.refine; ++i) {
      const float s = sqrtf(3 / (1 + f + f * f)), step_a = 1.5f * s, step_b = 0.5f * s * s * s;
      if (i == 0) a1 = step_a, b1 = step_b;
      if (i == step) a = step_a, b = step_b;
      const float shrunk = step_a - step_b * f * f;
      at_decay *= shrunk;
      f = fminf(1, f * shrunk);
    }
    restored = 1 / (sqrtf(rule.decay) * at_decay);
  }
};

}  // namespace kradagrad::cuda
