#include "scalars_plan.h"

namespace kradagrad::cuda {
namespace {

template <class Parameters>
Plan plan_of(const char* kernel, const Parameters& parameters) {
  Planner planner;
  const int64_t grid = (parameters.count + kScalarThreads - 1) / kScalarThreads;
  planner.launch(kernel, grid, kScalarThreads, 0, parameters);
  return planner.take();
}

}  // namespace

Plan plan_observe_gradients(const ObserveGradients& parameters) {
  return plan_of("observe_gradients", parameters);
}

Plan plan_scale_updates(const ScaleUpdates& parameters) { return plan_of("scale_updates", parameters); }

}  // namespace kradagrad::cuda
