// accumulate_ and parameter_step_ on CUDA: checks, and the plan of their launches (plan/elementwise_plan.h).
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

void accumulate(const Tensors momenta, const Tensors second_moments, const Tensors directions,
                const Tensor graft_norms, const Tensors grads, const Tensors params,
                const Tensor coefficients, const Tensor active, double beta1, double beta2, double weight2,
                bool nesterov) {
  const AccumulateArguments in{momenta, second_moments, directions,   graft_norms,
                               grads,   params,         coefficients, active};
  check_accumulate(Checks("accumulate_", coefficients), in, {beta1, beta2, weight2, nesterov}, kFloat,
                   kKernelViewDTypes);
  ElementwiseInputs inputs = inputs_of(coefficients, active);
  inputs.params = infos(params);
  inputs.grads = infos(grads);
  inputs.momenta = infos(momenta);
  inputs.second_moments = infos(second_moments);
  inputs.directions = infos(directions);
  check_layouts("accumulate_", inputs);
  const AccumulateRule rule = accumulate_rule(beta1, beta2, weight2, nesterov);
  run("accumulate_", coefficients,
      plan_accumulate(inputs, rule, data<float>(graft_norms), gpu_of(coefficients)));
}

void parameter_step(const Tensors params, const Tensors momenta, const Tensors residuals,
                    const Tensors updates, const Tensors directions, const Tensors second_moments,
                    const Tensor coefficients, const Tensor active, const Tensor lr, double momentum,
                    bool nesterov) {
  const ParameterArguments in{params,         momenta,      residuals, updates, directions,
                              second_moments, coefficients, active,    lr};
  check_parameter_step(Checks("parameter_step_", coefficients), in, {momentum, nesterov}, kFloat,
                       kKernelViewDTypes);
  ElementwiseInputs inputs = inputs_of(coefficients, active);
  inputs.params = infos(params);
  inputs.momenta = infos(momenta);
  inputs.residuals = infos(residuals);
  inputs.updates = infos(updates);
  inputs.directions = infos(directions);
  inputs.second_moments = infos(second_moments);
  check_layouts("parameter_step_", inputs);
  const ParameterRule rule{static_cast<float>(momentum), nesterov, data<float>(lr)};
  run("parameter_step_", coefficients, plan_parameter_step(inputs, rule));
}

}  // namespace
}  // namespace kradagrad::cuda

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CUDA, m) {
  m.impl("accumulate_", TORCH_BOX(&kradagrad::cuda::accumulate));
  m.impl("parameter_step_", TORCH_BOX(&kradagrad::cuda::parameter_step));
}
