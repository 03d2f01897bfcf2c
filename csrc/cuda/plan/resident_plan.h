// The launches of kron_step_ and update_factor_ in the square-root form for blocks of up to kResidentSide a
// side: resident_update and resident_precondition, each for all groups at once.
#pragma once

#include <vector>

#include "square_root_plan.h"

namespace kradagrad::cuda {

// Whether the resident kernels take a group on a GPU whose CTAs have so many bytes of shared memory.
bool is_resident(const SquareRootGroupTensors& group, int32_t shared_limit);

void plan_resident(Planner& planner, const SquareRootInputs& inputs, const std::vector<PlacedGroup>& groups);

}  // namespace kradagrad::cuda
