// update_moments_ and apply_updates_ on CUDA: checks, and the plan of their launches
// (plan/elementwise_plan.h).
#include <torch/csrc/stable/library.h>

#include "../elementwise_arguments.h"
#include "plan/elementwise_plan.h"
#include "run.h"

namespace kradagrad::cuda {
namespace {

const DTypes kFloat = {ScalarType::Float};

ElementwiseInputs inputs_of(const Tensor& coefficients, const Tensor& active) {
  ElementwiseInputs inputs{};
  inputs.coefficients = data<float>(coefficients);
  inputs.active = data<bool>(active);
  return inputs;
}

void update_moments(const Tensors momenta, const Tensors second_moments, const Tensors directions,
                    const Tensor graft_norms, const Tensors grads, const Tensors params,
                    const Tensor coefficients, const Tensor active, double beta1, double beta2,
                    double weight2, bool nesterov) {
  const UpdateMomentsArguments in{momenta, second_moments, directions,   graft_norms,
                                  grads,   params,         coefficients, active};
  check_update_moments(Checks("update_moments_", coefficients), in, {beta1, beta2, weight2, nesterov}, kFloat,
                       kKernelViewDTypes);
  ElementwiseInputs inputs = inputs_of(coefficients, active);
  inputs.params = infos(params);
  inputs.grads = infos(grads);
  inputs.momenta = infos(momenta);
  inputs.second_moments = infos(second_moments);
  inputs.directions = infos(directions);
  check_layouts("update_moments_", inputs);
  const UpdateMomentsRule rule = update_moments_rule(beta1, beta2, weight2, nesterov);
  run("update_moments_", coefficients,
      plan_update_moments(inputs, rule, data<float>(graft_norms), gpu_of(coefficients)));
}

void apply_updates(const Tensors params, const Tensors momenta, const Tensors residuals,
                   const Tensors updates, const Tensors directions, const Tensors second_moments,
                   const Tensor coefficients, const Tensor active, const Tensor lr, double momentum,
                   bool nesterov) {
  const ParameterArguments in{params,         momenta,      residuals, updates, directions,
                              second_moments, coefficients, active,    lr};
  check_apply_updates(Checks("apply_updates_", coefficients), in, {momentum, nesterov}, kFloat,
                      kKernelViewDTypes);
  ElementwiseInputs inputs = inputs_of(coefficients, active);
  inputs.params = infos(params);
  inputs.momenta = infos(momenta);
  inputs.residuals = infos(residuals);
  inputs.updates = infos(updates);
  inputs.directions = infos(directions);
  inputs.second_moments = infos(second_moments);
  check_layouts("apply_updates_", inputs);
  const ParameterRule rule{static_cast<float>(momentum), nesterov, data<float>(lr)};
  run("apply_updates_", coefficients, plan_apply_updates(inputs, rule));
}

}  // namespace
}  // namespace kradagrad::cuda

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CUDA, m) {
  m.impl("update_moments_", TORCH_BOX(&kradagrad::cuda::update_moments));
  m.impl("apply_updates_", TORCH_BOX(&kradagrad::cuda::apply_updates));
}
