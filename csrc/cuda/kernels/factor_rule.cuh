// What every kernel that updates factors makes of the rule's scalars and of a factor's mean.
#pragma once

#include "table.h"

namespace kradagrad::cuda {

// The mean of tr(S) / d after a gradient that is not the first; `scale`: its |A|_F^2 / d.
__device__ __forceinline__ float tracked_mean(const FactorRule& rule, float mean, float scale) {
  return rule.decay * mean + (1 - rule.decay) * scale;
}

// The unit u in which Y = x A is held: the power of two near sqrt(x), whose largest eigenvalue relative
// damping keeps near 1 / (damping mean). Y Y^T would overflow at x (t - 1), Y Y^T / u^2 does where t does.
// Scaling by powers of two rounds nothing.
__device__ __forceinline__ float unit_of(const FactorRule& rule, float mean) {
  if (rule.damping == 0 || mean == 0) return 1;
  const int exponent = max((__float_as_int(rule.damping * mean) >> 23) - 127, -120);
  return __int_as_float((127 - (exponent >> 1)) << 23);
}

}  // namespace kradagrad::cuda
