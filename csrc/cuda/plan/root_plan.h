// The launches of polar_roots_: resident_root for the sides of each size, all groups at once.
#pragma once

#include <vector>

#include "../kernels/polar_roots.h"
#include "batch.h"
#include "kernel_choice.h"
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
  int64_t turn, turns;     // on a turn one of `turns` parts of a side's blocks are due
  const int64_t* counter;  // or null; on the device, in place of `turn`
  int32_t shared_limit = 163 << 10;
};

// Whether resident_root takes sides of d on a GPU whose CTAs have so many bytes of shared memory.
bool has_resident_root(int32_t d, int32_t shared_limit);

// All sides are such that it does.
Plan plan_roots(const RootInputs& inputs);

}  // namespace kradagrad::cuda
