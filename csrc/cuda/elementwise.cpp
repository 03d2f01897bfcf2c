// The elementwise ops on CUDA: checks, and the plan of their launches (plan/elementwise_plan.h).
#include <torch/csrc/stable/library.h>

#include "../elementwise_arguments.h"
#include "plan/elementwise_plan.h"
#include "run.h"

namespace kradagrad::cuda {
namespace {

const DTypes kFloat = {ScalarType::Float};

void run_elementwise(const char* op, const Tensor& like, const ElementwiseCall& call) {
  run(op, like, plan_elementwise(op, call, gpu_of(like)));
}

void update_moments(const Tensors momenta, const Tensors second_moments, const Tensors directions,
                    const Tensor graft_norms, const Tensors grads, const Tensors params,
                    const Tensor coefficients, const Tensor active, double beta1, double beta2,
                    double weight2, bool nesterov) {
  const UpdateMomentsArguments in{momenta, second_moments, directions,   graft_norms,
                                  grads,   params,         coefficients, active};
  check_update_moments(Checks("update_moments_", coefficients), in, {beta1, beta2, weight2, nesterov}, kFloat,
                       kKernelViewDTypes);
  ElementwiseCall call;
  call.lists["momenta"] = infos(momenta);
  call.lists["second_moments"] = infos(second_moments);
  call.lists["directions"] = infos(directions);
  call.lists["grads"] = infos(grads);
  call.lists["params"] = infos(params);
  call.tensors = {{"graft_norms", graft_norms.data_ptr()},
                  {"coefficients", coefficients.data_ptr()},
                  {"active", active.data_ptr()}};
  call.scalars = {{"beta1", beta1}, {"beta2", beta2}, {"weight2", weight2}, {"nesterov", nesterov}};
  run_elementwise("update_moments_", coefficients, call);
}

void apply_updates(const Tensors params, const Tensors momenta, const Tensors residuals,
                   const Tensors updates, const Tensors directions, const Tensors second_moments,
                   const Tensor coefficients, const Tensor active, const Tensor lr, double momentum,
                   bool nesterov) {
  const ParameterArguments in{params,         momenta,      residuals, updates, directions,
                              second_moments, coefficients, active,    lr};
  check_apply_updates(Checks("apply_updates_", coefficients), in, {momentum, nesterov}, kFloat,
                      kKernelViewDTypes);
  ElementwiseCall call;
  call.lists["params"] = infos(params);
  call.lists["momenta"] = infos(momenta);
  call.lists["residuals"] = infos(residuals);
  call.lists["updates"] = infos(updates);
  call.lists["directions"] = infos(directions);
  call.lists["second_moments"] = infos(second_moments);
  call.tensors = {
      {"coefficients", coefficients.data_ptr()}, {"active", active.data_ptr()}, {"lr", lr.data_ptr()}};
  call.scalars = {{"momentum", momentum}, {"nesterov", nesterov}};
  run_elementwise("apply_updates_", coefficients, call);
}

}  // namespace
}  // namespace kradagrad::cuda

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CUDA, m) {
  m.impl("update_moments_", TORCH_BOX(&kradagrad::cuda::update_moments));
  m.impl("apply_updates_", TORCH_BOX(&kradagrad::cuda::apply_updates));
}
