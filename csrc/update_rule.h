// The scalars of a factor update (kradagrad_ext/backends/base.py), read and checked.
#pragma once

#include <algorithm>
#include <string>

#include "checks.h"
#include "rule.h"

namespace kradagrad {

enum class FactorScale { kTraceDim, kTrace, kProduct, kFrobenius, kSchatten4, kExact };

inline bool bounded_by_trace(FactorScale scale) {
  return scale == FactorScale::kTrace || scale == FactorScale::kTraceDim;
}

struct UpdateRule {
  double decay;
  double weight;
  double damping;
  FactorScale scale;
  int64_t refine;
  Precision precision;

  bool exact() const { return scale == FactorScale::kExact; }
  // Whether the update needs the k x k matrix N = I + A^T X A itself, not only a bound of it.
  bool inverts() const { return exact() || refine > 0; }
  // Of the k columns of an unfolding with d rows.
  int64_t columns_at_once(int64_t d, int64_t k) const {
    return inverts() ? std::min(k, std::max(d, int64_t{64})) : k;
  }
};

inline FactorScale factor_scale_named(const Checks& checks, const std::string& name) {
  if (name == "trace_dim") return FactorScale::kTraceDim;
  if (name == "trace") return FactorScale::kTrace;
  if (name == "product") return FactorScale::kProduct;
  if (name == "frobenius") return FactorScale::kFrobenius;
  if (name == "schatten4") return FactorScale::kSchatten4;
  if (name == "exact") return FactorScale::kExact;
  checks.fail("factor_scale", "trace_dim, trace, product, frobenius, schatten4 or exact", name);
}

inline Precision precision_named(const Checks& checks, const std::string& name) {
  if (name == "bf16x3") return Precision::kBf16x3;
  if (name == "tf32x3") return Precision::kTf32x3;
  if (name == "bf16x6") return Precision::kBf16x6;
  if (name == "fp32") return Precision::kFp32;
  checks.fail("precision", "bf16x3, tf32x3, bf16x6 or fp32", name);
}

inline UpdateRule update_rule(const Checks& checks, double decay, double weight, double damping,
                              const std::string& factor_scale, int64_t refine, const std::string& precision) {
  checks.scalar("decay", decay > 0 && decay <= 1, "in (0, 1]", decay);
  checks.positive("weight", weight);
  checks.not_negative("damping", damping);
  checks.scalar("refine", refine >= 0, ">= 0", refine);
  return {decay,   weight,
          damping, factor_scale_named(checks, factor_scale),
          refine,  precision_named(checks, precision)};
}

}  // namespace kradagrad
