// kron_step_ and update_factor_ on CUDA: checks, and the plan of their launches (plan/kron_step_plan.h).
#include <torch/csrc/stable/library.h>

#include "../kron_groups.h"
#include "../update_rule.h"
#include "plan/kron_step_plan.h"
#include "run.h"

namespace kradagrad::cuda {
namespace {

const DTypes kFloat = {ScalarType::Float};

// The rule of the kernels, which have no Cholesky.
FactorRule kernel_rule(const Checks& checks, const UpdateRule& rule) {
  static_assert(static_cast<int>(kradagrad::FactorScale::kSchatten4) ==
                static_cast<int>(FactorScale::kSchatten4));
  if (rule.exact()) {
    checks.fail("factor_scale", "trace_dim, trace, product, frobenius or schatten4 on CUDA", "exact");
  }
  return {static_cast<float>(rule.decay), static_cast<float>(rule.weight), static_cast<float>(rule.damping),
          static_cast<FactorScale>(rule.scale), static_cast<int32_t>(rule.refine)};
}

Precision kernel_precision(const UpdateRule& rule) { return static_cast<Precision>(rule.precision); }

// Sizes that the kernels count in 32 bits.
void check_sizes(const Checks& checks, const char* name, int64_t rows, int64_t cols) {
  constexpr int64_t kMost = int64_t{1} << 30;
  checks.scalar(name, rows < kMost && cols < kMost, "blocks of fewer than 2^30 rows and columns",
                std::max(rows, cols));
}

KronTensors kernel_group(const KronArguments& in, const kradagrad::KronGroup& group) {
  KronTensors tensors{};
  tensors.blocks = group.blocks;
  tensors.m = static_cast<int32_t>(group.m);
  tensors.n = static_cast<int32_t>(group.n);
  if (in.update) {
    tensors.grad = infos(group.grad);
    tensors.left = FactorTensors{info(group.left), data<float>(group.left_statistics)};
    tensors.right = FactorTensors{info(group.right), data<float>(group.right_statistics)};
  }
  if (in.precondition()) {
    tensors.direction = infos(group.direction);
    tensors.out = infos(group.out);
    tensors.left_root = info(group.roots[0]);
    tensors.right_root = info(group.roots[1]);
  }
  return tensors;
}

void kron_step(const Tensors left, const Tensors right, const Tensors left_statistics,
               const Tensors right_statistics, const Tensors out, const Tensor norms, const Tensors grad,
               const Tensors direction, const Tensors left_root, const Tensors right_root,
               const Tensor active, double decay, double weight, double damping,
               const std::string factor_scale, int64_t refine, const std::string precision, bool update) {
  const KronArguments in{left, right,     left_statistics, right_statistics, out,    norms,
                         grad, direction, left_root,       right_root,       active, update};
  const Checks checks("kron_step_", norms);
  if (!left.empty()) checks.contiguous("left[0]", left[0], {"N", "m", "m"}, kFloat);
  const std::vector<kradagrad::KronGroup> groups = checked_groups(checks, in, kKernelViewDTypes);
  const UpdateRule rule = update_rule(checks, decay, weight, damping, factor_scale, refine, precision);
  KronStepInputs inputs{{},
                        kernel_rule(checks, rule),
                        kernel_precision(rule),
                        update,
                        in.precondition(),
                        data<bool>(active),
                        data<float>(norms)};
  for (const kradagrad::KronGroup& group : groups) {
    check_sizes(checks, "left", group.m, group.n);
    inputs.groups.push_back(kernel_group(in, group));
  }
  inputs.shared_limit = shared_memory_limit(norms);
  run("kron_step_", norms, plan_kron_step(inputs));
}

void update_factor(const Tensor factor, const Tensor statistics, const Tensors unfolding, const Tensor active,
                   double decay, double weight, double damping, const std::string factor_scale,
                   int64_t refine, const std::string precision) {
  const Checks checks("update_factor_", factor);
  checks.contiguous("factor", factor, {"N", "d", "d"}, kFloat);
  const int64_t count = factor.size(0), d = factor.size(1);
  checks.contiguous("statistics", statistics, {count, 2}, kFloat);
  const int64_t k = unfolding.empty() ? 0 : unfolding[0].size(unfolding[0].dim() - 1);
  checks.block_views("unfolding", unfolding, count, d, k, kKernelViewDTypes);
  checks.contiguous("active", active, {count}, {ScalarType::Bool});
  check_sizes(checks, "unfolding", d, k);
  const UpdateRule rule = update_rule(checks, decay, weight, damping, factor_scale, refine, precision);
  KronTensors group{};
  group.blocks = count;
  group.m = static_cast<int32_t>(d);
  group.n = static_cast<int32_t>(k);
  group.grad = infos(unfolding);
  group.left = FactorTensors{info(factor), data<float>(statistics)};
  KronStepInputs inputs{
      {group}, kernel_rule(checks, rule), kernel_precision(rule), true, false, data<bool>(active), nullptr};
  inputs.shared_limit = shared_memory_limit(factor);
  run("update_factor_", factor, plan_kron_step(inputs));
}

}  // namespace
}  // namespace kradagrad::cuda

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CUDA, m) {
  m.impl("kron_step_", TORCH_BOX(&kradagrad::cuda::kron_step));
  m.impl("update_factor_", TORCH_BOX(&kradagrad::cuda::update_factor));
}
