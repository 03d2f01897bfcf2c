// guard_gradients_ and scale_updates_ on CUDA: checks, and the plan of their launches
// (plan/scalars_plan.h).
#include <torch/csrc/stable/library.h>

#include "../scalar_arguments.h"
#include "plan/scalars_plan.h"
#include "run.h"

namespace kradagrad::cuda {
namespace {

const DTypes kFloat = {ScalarType::Float};

void guard_gradients(const Tensor scalars, const Tensor coefficients, const Tensor active,
                     const Tensor restarts, const Tensor norms, const Tensor numel, const Tensor present,
                     const Tensor weight_decay, double spike_limit, double beta1, bool averaged,
                     bool nesterov, double bias2, double decay2, double weight2, double eps, int64_t decayed,
                     bool by_chance, std::string length) {
  const GuardArguments in{scalars, coefficients, active, restarts, norms, numel, present, weight_decay};
  const Checks checks("guard_gradients_", scalars);
  const GuardNumbers numbers{spike_limit,
                             beta1,
                             averaged,
                             nesterov,
                             bias2,
                             decay2,
                             weight2,
                             eps,
                             decayed,
                             by_chance,
                             length_named(checks, length)};
  check_guard(checks, in, numbers, kFloat);
  run("guard_gradients_", scalars,
      plan_guard_gradients({data<Scalars<float>>(scalars), data<float>(coefficients), data<bool>(active),
                            data<bool>(restarts), data<double>(norms), data<float>(numel),
                            data<bool>(present), data<float>(weight_decay), scalars.size(0),
                            rule_of<float>(numbers)}));
}

void scale_updates(const Tensor coefficients, const Tensor scalars, const Tensor graft_norms,
                   const Tensor graft_offsets, const Tensor update_norms, const Tensor update_order,
                   const Tensor update_offsets, const Tensor numel, const Tensor preconditioned, double beta1,
                   bool averaged, std::string length) {
  const LengthArguments in{coefficients, scalars,        graft_norms, graft_offsets, update_norms,
                           update_order, update_offsets, numel,       preconditioned};
  const Checks checks("scale_updates_", coefficients);
  const LengthNumbers numbers{beta1, averaged, length_named(checks, length)};
  check_scale_updates(checks, in, numbers, kFloat);
  run("scale_updates_", coefficients,
      plan_scale_updates({data<float>(coefficients), data<Scalars<float>>(scalars), data<float>(graft_norms),
                          data<int64_t>(graft_offsets), data<float>(update_norms),
                          data<int64_t>(update_order), data<int64_t>(update_offsets), data<float>(numel),
                          data<bool>(preconditioned), coefficients.size(0), rule_of<float>(numbers)}));
}

}  // namespace
}  // namespace kradagrad::cuda

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CUDA, m) {
  m.impl("guard_gradients_", TORCH_BOX(&kradagrad::cuda::guard_gradients));
  m.impl("scale_updates_", TORCH_BOX(&kradagrad::cuda::scale_updates));
}
