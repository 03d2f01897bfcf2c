// The launches of kron_step_ and update_factor_ in the square-root form. Blocks of up to kWideSide a side
// take two launches (resident_plan.h). kernels/square_root.h lists the launches of larger blocks; each is
// made for all groups and both sides, slice by slice of blocks.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "../kernels/square_root.h"
#include "batch.h"
#include "block_kernel.h"
#include "launch.h"

namespace kradagrad::cuda {

// A side's factor F [N, d, d] and its statistics [N, 4]; contiguous.
struct SquareRootSideTensors {
  TensorInfo factor;
  float* statistics;
};

// One group: N blocks [m, n].
struct SquareRootGroupTensors {
  int64_t blocks;
  int32_t m, n;
  TensorInfos grad;  // used only if factors are updated
  std::optional<SquareRootSideTensors> left, right;
  TensorInfos direction, out;        // used only if the product is made
  TensorInfo left_root, right_root;  // for the product and for a coupled update
};

struct SquareRootInputs {
  std::vector<SquareRootGroupTensors> groups;
  SquareRootRule rule;
  Precision precision;
  bool update, precondition;
  const float* scales;  // [blocks of all groups]
  float* norms;         // [blocks of all groups]; null unless the product is made
  Gpu gpu;
};

// One group, and its first block among all groups' blocks.
struct PlacedGroup {
  const SquareRootGroupTensors& in;
  int64_t first_block;
};

// The plan of a call. `scratch_bytes`: upper bound of one slice's matrices.
Plan plan_square_root_step(const SquareRootInputs& inputs, int64_t scratch_bytes = int64_t{256} << 20);

}  // namespace kradagrad::cuda
