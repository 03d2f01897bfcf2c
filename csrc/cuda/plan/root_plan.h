// The launches of polar_roots_: one for the sides of each size, of all groups at once (block_kernel.h).
#pragma once

#include <vector>

#include "../kernels/polar_roots.h"
#include "batch.h"
#include "block_kernel.h"
#include "launch.h"

namespace kradagrad::cuda {

// One side of a group: N blocks [d, d]; contiguous.
struct RootSideTensors {
  int64_t blocks;
  int32_t d, k;
  TensorInfo factor, root;
  const float* statistics;
  float* root_statistics;
  const bool* active;
};

struct RootInputs {
  std::vector<RootSideTensors> sides;
  PolarRule rule;
  Precision precision;
  int64_t turn, turns;     // on a turn one of `turns` parts of a side's blocks are due, none with 0
  const int64_t* counter;  // or null; on the device, in place of `turn`
  Gpu gpu;
};

// The sides of factors that kernels root on a GPU go up to this one.
int32_t longest_root_side(Precision precision, const Gpu& gpu);

// All sides are at most that long.
Plan plan_roots(const RootInputs& inputs);

}  // namespace kradagrad::cuda
