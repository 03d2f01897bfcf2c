// The launches of kron_step_ and update_factor_ in the square-root form for blocks of up to kResidentSide a
// side: resident_update and resident_precondition, each for all groups of a size at once.
#pragma once

#include <vector>

#include "square_root_plan.h"

namespace kradagrad::cuda {

// Whether the resident kernels take a group on a GPU whose CTAs have so many bytes of shared memory.
bool is_resident(const SquareRootGroupTensors& group, const SquareRootInputs& inputs);

void plan_resident(Planner& planner, const SquareRootInputs& inputs, const std::vector<PlacedGroup>& groups);

}  // namespace kradagrad::cuda
