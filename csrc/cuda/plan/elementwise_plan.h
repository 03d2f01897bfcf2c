// The launches of update_moments_ and apply_updates_.
#pragma once

#include <vector>

#include "../kernels/elementwise.h"
#include "batch.h"
#include "gpu.h"
#include "launch.h"

namespace kradagrad::cuda {

// Tensors of every parameter; an empty list, or a tensor without elements, means that the tensor is missing.
struct ElementwiseInputs {
  TensorInfos params, grads, momenta, second_moments, directions, updates, residuals;
  const float* coefficients;  // [P, kCoefficients]
  const bool* active;         // [P]
};

struct UpdateMomentsRule {
  float beta1, rest1, beta2, weight2;
  bool nesterov;
};

// 1 - beta1 is rounded from double: in float it would lose digits.
UpdateMomentsRule update_moments_rule(double beta1, double beta2, double weight2, bool nesterov);

struct ParameterRule {
  float momentum;
  bool nesterov;
  const float* lr;
};

Plan plan_update_moments(const ElementwiseInputs& inputs, const UpdateMomentsRule& rule, float* graft_norms,
                         const Gpu& gpu);
Plan plan_apply_updates(const ElementwiseInputs& inputs, const ParameterRule& rule);

// Throws, naming `op`, if a parameter's tensors have more than kMaxDims dims that cannot be merged.
void check_layouts(const char* op, const ElementwiseInputs& inputs);

}  // namespace kradagrad::cuda
