// The launches of guard_gradients_ and scale_updates_.
#pragma once

#include "../kernels/scalars.h"
#include "launch.h"

namespace kradagrad::cuda {

Plan plan_guard_gradients(const GuardGradients& parameters);
Plan plan_scale_updates(const ScaleUpdates& parameters);

}  // namespace kradagrad::cuda
