// kron_step_ and update_factor_ in the square-root form on CUDA: checks, and the plan of their launches
// (plan/square_root_plan.h).
#include <torch/csrc/stable/library.h>

#include "../block_groups.h"
#include "plan/square_root_plan.h"
#include "run.h"

namespace kradagrad::cuda {
namespace {

const DTypes kFloat = {ScalarType::Float};

// The rule in the form of the kernels, which have no Cholesky method.
SquareRootRule kernel_rule(const Checks& checks, const kradagrad::FactorRule& rule, bool update) {
  if (update && rule.method == Method::kCholesky) checks.fail("method", "products on CUDA", "cholesky");
  return {static_cast<float>(rule.decay),
          static_cast<float>(rule.weight),
          static_cast<float>(rule.damping),
          static_cast<float>(rule.prior),
          static_cast<float>(rule.damped_updates),
          static_cast<int32_t>(rule.refine),
          rule.coupled};
}

// Checks sizes that the kernels count in 32 bits.
void check_sizes(const Checks& checks, const char* name, int64_t rows, int64_t cols) {
  constexpr int64_t kMost = int64_t{1} << 30;
  checks.scalar(name, rows < kMost && cols < kMost, "blocks of fewer than 2^30 rows and columns",
                std::max(rows, cols));
}

SquareRootSideTensors kernel_side(const kradagrad::Side& side) {
  return {info(side.factor), data<float>(side.statistics)};
}

void kron_step(const Tensors left, const Tensors right, const Tensors left_statistics,
               const Tensors right_statistics, const Tensors out, const Tensor norms, const Tensors grad,
               const Tensors direction, const Tensors left_root, const Tensors right_root,
               const Tensor scales, double decay, double weight, double damping, double prior,
               double damped_updates, const std::string method, int64_t refine, const std::string precision,
               bool coupled, bool update, bool precondition) {
  const GroupArguments in{left,      right,     left_statistics, right_statistics, out,    norms,       grad,
                          direction, left_root, right_root,      scales,           update, precondition};
  const Checks checks("kron_step_", norms);
  checks.tensor("norms", norms, {"N"}, kFloat);
  const kradagrad::FactorRule rule =
      factor_rule(checks, decay, weight, damping, prior, damped_updates, method, refine, precision, coupled);
  const std::vector<BlockGroup> groups = checked_block_groups(checks, in, rule, kKernelViewDTypes);
  SquareRootInputs inputs{{},
                          kernel_rule(checks, rule, update),
                          static_cast<Precision>(rule.precision),
                          update,
                          precondition,
                          data<float>(scales),
                          data<float>(norms),
                          gpu_of(norms)};
  for (const BlockGroup& group : groups) {
    check_sizes(checks, "left", group.m, group.n);
    inputs.groups.push_back({group.blocks, static_cast<int32_t>(group.m), static_cast<int32_t>(group.n),
                             infos(group.grad), kernel_side(group.left), kernel_side(group.right),
                             infos(group.direction), infos(group.out), info(group.left.root),
                             info(group.right.root)});
  }
  run("kron_step_", norms, plan_square_root_step(inputs));
}

void update_factor(const Tensor factor, const Tensor statistics, const Tensors unfolding, const Tensor scales,
                   double decay, double weight, double damping, double prior, double damped_updates,
                   const std::string method, int64_t refine, const std::string precision, bool coupled) {
  const Checks checks("update_factor_", statistics);
  checks.tensor("statistics", statistics, {"N", kStatistics}, kFloat);
  check_side(checks, "factor", factor, "statistics", statistics, statistics.size(0), "d", ScalarType::Float);
  const int64_t count = factor.size(0), d = factor.size(1);
  const int64_t k = unfolding.empty() ? 0 : unfolding[0].size(unfolding[0].dim() - 1);
  checks.block_views("unfolding", unfolding, count, d, k, kKernelViewDTypes);
  checks.contiguous("scales", scales, {count}, kFloat);
  check_sizes(checks, "unfolding", d, k);
  const kradagrad::FactorRule rule =
      factor_rule(checks, decay, weight, damping, prior, damped_updates, method, refine, precision, false);
  SquareRootGroupTensors group{};
  group.blocks = count;
  group.m = static_cast<int32_t>(d);
  group.n = static_cast<int32_t>(k);
  group.grad = infos(unfolding);
  group.left = SquareRootSideTensors{info(factor), data<float>(statistics)};
  const SquareRootInputs inputs{{group},
                                kernel_rule(checks, rule, true),
                                static_cast<Precision>(rule.precision),
                                true,
                                false,
                                data<float>(scales),
                                nullptr,
                                gpu_of(statistics)};
  run("update_factor_", statistics, plan_square_root_step(inputs));
}

}  // namespace
}  // namespace kradagrad::cuda

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CUDA, m) {
  m.impl("kron_step_", TORCH_BOX(&kradagrad::cuda::kron_step));
  m.impl("update_factor_", TORCH_BOX(&kradagrad::cuda::update_factor));
}
