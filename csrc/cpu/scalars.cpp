// guard_gradients_ and scale_updates_: a few numbers for each of M matrices, processed sequentially
// (scalar_rules.h has the rules of one matrix).
#include <torch/csrc/stable/library.h>

#include "../scalar_arguments.h"
#include "dtypes.h"

namespace kradagrad::cpu {
namespace {

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

template <class T>
void run(const GuardArguments& in, const GuardRule<T>& rule) {
  auto* const scalars = data<Scalars<T>>(in.scalars);
  const T decay = *data<T>(in.weight_decay);
  for (int64_t i = 0; i < in.scalars.size(0); ++i) {
    guard_matrix(scalars[i], data<T>(in.coefficients) + kCoefficients * i, data<bool>(in.active)[i],
                 data<bool>(in.restarts)[i], data<double>(in.norms)[i], data<T>(in.numel)[i],
                 data<bool>(in.present)[i], decay, rule);
  }
}

template <class T>
void run(const LengthArguments& in, const LengthRule<T>& rule) {
  auto* const scalars = data<Scalars<T>>(in.scalars);
  const int64_t *const graft_offsets = data<int64_t>(in.graft_offsets), *const update_offsets =
                                                                            data<int64_t>(in.update_offsets);
  for (int64_t i = 0; i < in.coefficients.size(0); ++i) {
    double graft = 0, update = 0;
    for (int64_t s = graft_offsets[i]; s < graft_offsets[i + 1]; ++s) graft += data<T>(in.graft_norms)[s];
    for (int64_t b = update_offsets[i]; b < update_offsets[i + 1]; ++b) {
      update += data<T>(in.update_norms)[data<int64_t>(in.update_order)[b]];
    }
    scale_matrix(data<T>(in.coefficients) + kCoefficients * i, scalars[i], static_cast<T>(graft),
                 static_cast<T>(update), data<T>(in.numel)[i], data<bool>(in.preconditioned)[i], rule);
  }
}

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
  check_guard(checks, in, numbers, kFactorDTypes);
  with_compute_type(scalars.scalar_type(), [&](auto type) { run(in, rule_of<decltype(type)>(numbers)); });
}

void scale_updates(const Tensor coefficients, const Tensor scalars, const Tensor graft_norms,
                   const Tensor graft_offsets, const Tensor update_norms, const Tensor update_order,
                   const Tensor update_offsets, const Tensor numel, const Tensor preconditioned, double beta1,
                   bool averaged, std::string length) {
  const LengthArguments in{coefficients, scalars,        graft_norms, graft_offsets, update_norms,
                           update_order, update_offsets, numel,       preconditioned};
  const Checks checks("scale_updates_", coefficients);
  const LengthNumbers numbers{beta1, averaged, length_named(checks, length)};
  check_scale_updates(checks, in, numbers, kFactorDTypes);
  with_compute_type(coefficients.scalar_type(),
                    [&](auto type) { run(in, rule_of<decltype(type)>(numbers)); });
}

}  // namespace
}  // namespace kradagrad::cpu

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CPU, m) {
  m.impl("guard_gradients_", TORCH_BOX(&kradagrad::cpu::guard_gradients));
  m.impl("scale_updates_", TORCH_BOX(&kradagrad::cpu::scale_updates));
}
