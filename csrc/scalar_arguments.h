// The arguments of the ops on matrices' scalars, and their checks.
#pragma once

#include "checks.h"
#include "scalar_rules.h"

namespace kradagrad {

struct GuardArguments {
  Tensor scalars, coefficients, active, restarts, norms, numel, present, weight_decay;
};

struct LengthArguments {
  Tensor coefficients, scalars, graft_norms, graft_offsets, update_norms, update_order, update_offsets, numel,
      preconditioned;
};

inline Length length_named(const Checks& checks, const std::string& name) {
  if (name == "graft") return Length::kGraft;
  if (name == "gradient") return Length::kGradient;
  if (name == "rms") return Length::kRms;
  if (name == "whitened") return Length::kWhitened;
  checks.fail("length", "graft, gradient, rms or whitened", name);
}

inline void check_beta(const Checks& checks, const char* name, double beta) {
  checks.scalar(name, beta >= 0 && beta < 1, "in [0, 1)", beta);
}

// `dtypes`: those allowed for the scalars, whose dtype other tensors share.
inline void check_guard(const Checks& checks, const GuardArguments& in, const GuardNumbers& numbers,
                        const DTypes& dtypes) {
  checks.contiguous("scalars", in.scalars, {"M", kScalars}, dtypes);
  const int64_t count = in.scalars.size(0);
  const DTypes dtype = {in.scalars.scalar_type()}, boolean = {ScalarType::Bool};
  checks.contiguous("coefficients", in.coefficients, {count, kCoefficients}, dtype);
  checks.contiguous("active", in.active, {count}, boolean);
  checks.contiguous("restarts", in.restarts, {count}, boolean);
  checks.contiguous("norms", in.norms, {count}, {ScalarType::Double});
  checks.contiguous("numel", in.numel, {count}, dtype);
  checks.contiguous("present", in.present, {count}, boolean);
  checks.tensor("weight_decay", in.weight_decay, {}, dtype);
  checks.scalar("spike_limit", numbers.spike_limit > 1, "> 1", numbers.spike_limit);
  check_beta(checks, "beta1", numbers.beta1);
  check_beta(checks, "bias2", numbers.bias2);
  checks.scalar("decay2", numbers.decay2 >= 0 && numbers.decay2 <= 1, "in [0, 1]", numbers.decay2);
  checks.not_negative("weight2", numbers.weight2);
  checks.not_negative("eps", numbers.eps);
  checks.scalar("decayed", numbers.decayed >= kGradientDecay && numbers.decayed < kCoefficients, "7, 8 or 9",
                numbers.decayed);
}

inline void check_scale_updates(const Checks& checks, const LengthArguments& in, const LengthNumbers& numbers,
                                const DTypes& dtypes) {
  checks.contiguous("coefficients", in.coefficients, {"M", kCoefficients}, dtypes);
  const int64_t count = in.coefficients.size(0);
  const DTypes dtype = {in.coefficients.scalar_type()};
  checks.contiguous("scalars", in.scalars, {count, kScalars}, dtype);
  const DTypes index = {ScalarType::Long};
  checks.contiguous("graft_norms", in.graft_norms, {"S"}, dtype);
  checks.contiguous("graft_offsets", in.graft_offsets, {count + 1}, index);
  checks.contiguous("update_norms", in.update_norms, {"B"}, dtype);
  checks.contiguous("update_order", in.update_order, {in.update_norms.size(0)}, index);
  checks.contiguous("update_offsets", in.update_offsets, {count + 1}, index);
  checks.contiguous("numel", in.numel, {count}, dtype);
  checks.contiguous("preconditioned", in.preconditioned, {count}, {ScalarType::Bool});
  check_beta(checks, "beta1", numbers.beta1);
}

}  // namespace kradagrad
