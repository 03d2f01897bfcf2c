#include "scalars_plan.h"

namespace kradagrad::cuda {
namespace {

template <class Parameters>
Plan plan_of(const char* kernel, int64_t ctas, const Parameters& parameters) {
  Planner planner;
  planner.launch(kernel, ctas, kScalarThreads, 0, parameters);
  return planner.take();
}

}  // namespace

Plan plan_guard_gradients(const GuardGradients& parameters) {
  return plan_of("guard_gradients", (parameters.count + kScalarThreads - 1) / kScalarThreads, parameters);
}

Plan plan_scale_updates(const ScaleUpdates& parameters) {
  return plan_of("scale_updates", parameters.count, parameters);
}

}  // namespace kradagrad::cuda
