// The launches of kron_step_ and update_factor_ in the square-root form for blocks that a CTA processes
// whole: one update and one product for all groups of a size, by resident_* or wide_* (block_kernel.h).
#pragma once

#include <vector>

#include "square_root_plan.h"

namespace kradagrad::cuda {

// True if there are such kernels for a group.
bool is_taken_whole(const SquareRootGroupTensors& group, const SquareRootInputs& inputs);

void plan_resident(Planner& planner, const SquareRootInputs& inputs, const std::vector<PlacedGroup>& groups);

}  // namespace kradagrad::cuda
