// polar_roots_ on CUDA: checks, and the plan of its launches (plan/root_plan.h).
#include <torch/csrc/stable/library.h>

#include <optional>

#include "../block_groups.h"
#include "plan/root_plan.h"
#include "run.h"

namespace kradagrad::cuda {
namespace {

const DTypes kFloat = {ScalarType::Float};

PolarRule polar_rule(const Checks& checks, const std::vector<double>& polynomials, double bound) {
  const auto numbers = static_cast<int64_t>(polynomials.size());
  checks.scalar("polynomials", numbers > 0 && numbers % 3 == 0 && numbers <= 3 * kMostPolarSteps,
                "three numbers a step of at most " + std::to_string(kMostPolarSteps), numbers);
  checks.positive("bound", bound);
  PolarRule rule{};
  rule.steps = static_cast<int32_t>(numbers / 3);
  rule.bound = static_cast<float>(bound);
  for (int32_t i = 0; i < rule.steps; ++i) {
    rule.a[i] = static_cast<float>(polynomials[3 * i]);
    rule.b[i] = static_cast<float>(polynomials[3 * i + 1]);
    rule.c[i] = static_cast<float>(polynomials[3 * i + 2]);
  }
  return rule;
}

void polar_roots(const Tensors roots, const Tensors root_statistics, const Tensors factors,
                 const Tensors factor_statistics, const Tensors active, const std::vector<int64_t> columns,
                 const std::optional<Tensor> counter, int64_t turn, int64_t turns,
                 const std::vector<double> polynomials, double bound, const std::string precision) {
  if (factors.empty()) return;
  const Checks checks("polar_roots_", factors[0]);
  const size_t count = factors.size();
  checks.length("roots", roots, count);
  checks.length("root_statistics", root_statistics, count);
  checks.length("factor_statistics", factor_statistics, count);
  checks.length("active", active, count);
  checks.scalar("columns", columns.size() == count, std::to_string(count) + " numbers",
                static_cast<int64_t>(columns.size()));
  checks.scalar("turn", turn >= 0, "at least 0", turn);
  checks.scalar("turns", turns >= 0, "at least 0", turns);
  if (counter) checks.contiguous("counter", *counter, {}, {ScalarType::Long});
  RootInputs inputs{{},
                    polar_rule(checks, polynomials, bound),
                    static_cast<Precision>(precision_named(checks, precision)),
                    turn,
                    turns,
                    counter ? data<int64_t>(*counter) : nullptr,
                    gpu_of(factors[0])};
  const int32_t longest = longest_root_side(inputs.precision, inputs.gpu);
  for (size_t i = 0; i < count; ++i) {
    const auto named = [&](const char* name) { return Checks::item(name, i); };
    check_side(checks, named("factors"), factors[i], named("factor_statistics"), factor_statistics[i], "N",
               "d", ScalarType::Float);
    const int64_t blocks = factors[i].size(0), d = factors[i].size(1);
    checks.contiguous(named("roots"), roots[i], {blocks, d, d}, {ScalarType::Float, ScalarType::BFloat16});
    checks.contiguous(named("root_statistics"), root_statistics[i], {blocks, kRootColumns}, kFloat);
    checks.contiguous(named("active"), active[i], {blocks}, {ScalarType::Bool});
    checks.scalar(named("factors"), d <= longest, "of at most " + std::to_string(longest) + " a side", d);
    inputs.sides.push_back({blocks, static_cast<int32_t>(d), static_cast<int32_t>(columns[i]),
                            info(factors[i]), info(roots[i]), data<float>(factor_statistics[i]),
                            data<float>(root_statistics[i]), data<bool>(active[i])});
  }
  run("polar_roots_", factors[0], plan_roots(inputs));
}

}  // namespace
}  // namespace kradagrad::cuda

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CUDA, m) {
  m.impl("polar_roots_", TORCH_BOX(&kradagrad::cuda::polar_roots));
}
