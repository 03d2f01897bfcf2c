// The arguments of the elementwise ops on all parameters, and their checks.
#pragma once

#include "checks.h"
#include "scalar_rules.h"

namespace kradagrad {

struct UpdateMomentsArguments {
  Tensors momenta, second_moments, directions;
  Tensor graft_norms;
  Tensors grads, params;
  Tensor coefficients, active;
};

struct UpdateMomentsScalars {
  double beta1, beta2, weight2;
  bool nesterov;
};

struct ParameterArguments {
  Tensors params, momenta, residuals, updates, directions, second_moments;
  Tensor coefficients, active, lr;
};

struct ParameterScalars {
  double momentum;
  bool nesterov;
};

// Number of the spans of kSpan elements of all parameters.
inline int64_t spans_of(const Tensors& params) {
  int64_t spans = 0;
  for (const Tensor& param : params) spans += (param.numel() + kSpan - 1) / kSpan;
  return spans;
}

// `dtypes`: those allowed for the coefficients, whose dtype others share; `view_dtypes`: for gradients and
// parameters.
inline void check_update_moments(const Checks& checks, const UpdateMomentsArguments& in,
                                 const UpdateMomentsScalars& scalars, const DTypes& dtypes,
                                 const DTypes& view_dtypes) {
  const auto count = static_cast<int64_t>(in.params.size());
  checks.contiguous("coefficients", in.coefficients, {count, kCoefficients}, dtypes);
  const DTypes dtype = {in.coefficients.scalar_type()};
  checks.contiguous("graft_norms", in.graft_norms, {in.graft_norms.numel() > 0 ? spans_of(in.params) : 0},
                    dtype);
  checks.contiguous("active", in.active, {count}, {ScalarType::Bool});
  checks.like_parameters("params", in.params, in.params, view_dtypes);
  checks.like_parameters("grads", in.grads, in.params, view_dtypes);
  checks.like_parameters("momenta", in.momenta, in.params, dtype, true);
  checks.like_parameters("second_moments", in.second_moments, in.params, dtype, true);
  checks.like_parameters("directions", in.directions, in.params, dtype, true);
  checks.scalar("beta1", scalars.beta1 >= 0 && scalars.beta1 <= 1, "in [0, 1]", scalars.beta1);
  checks.scalar("beta2", scalars.beta2 >= 0 && scalars.beta2 <= 1, "in [0, 1]", scalars.beta2);
  checks.not_negative("weight2", scalars.weight2);
}

inline void check_apply_updates(const Checks& checks, const ParameterArguments& in,
                                const ParameterScalars& scalars, const DTypes& dtypes,
                                const DTypes& view_dtypes) {
  const size_t count = in.params.size();
  checks.contiguous("coefficients", in.coefficients, {static_cast<int64_t>(count), kCoefficients}, dtypes);
  const DTypes dtype = {in.coefficients.scalar_type()};
  checks.contiguous("active", in.active, {static_cast<int64_t>(count)}, {ScalarType::Bool});
  checks.tensor("lr", in.lr, {}, dtype);
  const DTypes bf16 = {ScalarType::BFloat16};
  checks.like_parameters("params", in.params, in.params, in.residuals.empty() ? view_dtypes : bf16);
  checks.like_parameters("momenta", in.momenta, in.params, dtype, true);
  checks.like_parameters("residuals", in.residuals, in.params, {ScalarType::Short}, true);
  checks.like_parameters("directions", in.directions, in.params, view_dtypes);
  checks.like_parameters("second_moments", in.second_moments, in.params, dtype, true);
  checks.length("updates", in.updates, count);
  for (size_t i = 0; i < count; ++i) {
    if (in.updates[i].numel() > 0) checks.like_parameter("updates", i, in.updates[i], in.params[i], dtype);
  }
  checks.not_negative("momentum", scalars.momentum);
}

}  // namespace kradagrad
