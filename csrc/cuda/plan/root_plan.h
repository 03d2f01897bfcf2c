// The launches of polar_roots_: one for all groups' sides of each size (block_kernel.h).
#pragma once

#include <vector>

#include "../kernels/polar_roots.h"
#include "batch.h"
#include "block_kernel.h"
#include "launch.h"

namespace kradagrad::cuda {

// One side of a group: N contiguous blocks [d, d].
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
  int64_t turn, turns;     // on a turn, one of `turns` parts of a side's blocks is due; none if `turns` is 0
  const int64_t* counter;  // the turn, on the device, in place of `turn`; or null
  Gpu gpu;
};

// The longest side of factors whose roots the kernels compute on a GPU.
int32_t longest_root_side(Precision precision, const Gpu& gpu);

// Requires that no side is longer than longest_root_side.
Plan plan_roots(const RootInputs& inputs);

}  // namespace kradagrad::cuda
