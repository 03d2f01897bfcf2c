// Tables of the elementwise kernels, which process all parameters at once; a CTA processes one span of kSpan
// elements at a time.
#pragma once

#include <cstdint>

#include "../../scalar_rules.h"

namespace kradagrad::cuda {

constexpr int kMaxDims = 5;
constexpr int kElementThreads = 128;

// One tensor of a parameter; `data` is null if it is missing.
struct Elements {
  void* data;
  int64_t strides[kMaxDims];
  int32_t bf16;
};

// A parameter and its tensors, all of one shape; dims that are contiguous in every tensor are merged.
struct Parameter {
  int64_t first_span;
  int64_t numel;
  int32_t dims;
  int32_t flat;  // one dim, contiguous and 16-byte aligned in every tensor
  int64_t sizes[kMaxDims];
  Elements param, grad, momentum, second_moment, direction, update, residual;
};

struct UpdateMoments {
  const Parameter* parameters;
  int32_t count;
  int32_t nesterov;
  float beta1, rest1, beta2, weight2;
  const float* coefficients;  // [P, kCoefficients]
  const bool* active;         // [P]
  int64_t spans;              // number of the spans of all parameters
  float* graft_norms;         // [spans]: |graft|^2; or null if not needed
};

struct ApplyUpdates {
  const Parameter* parameters;
  int32_t count;
  int32_t nesterov;
  float momentum;
  const float* coefficients;  // [P, kCoefficients]
  const bool* active;         // [P]
  const float* lr;
};

// Every elementwise kernel with its parameters.
#define FOR_EVERY_ELEMENTWISE_KERNEL(KERNEL) \
  KERNEL(update_moments, UpdateMoments)      \
  KERNEL(apply_updates, ApplyUpdates)

}  // namespace kradagrad::cuda
