// One factor whose root is made: what the kernels need to know of it.
#pragma once

#include "memory.cuh"
#include "polar_roots.h"
#include "square_root_rule.cuh"

namespace kradagrad::cuda {

// Of no rows where nothing is to be done. In shared memory, to spare registers; one thread writes it.
struct RootItem {
  Matrices factor, root;
  float* statistics;  // of the root
  int64_t block;
  int32_t d;
  float unit;  // sqrt(w k) rms

  // The work item of an index: the blocks of every side that are due.
  __device__ __forceinline__ void find(const ResidentRoots& in, int64_t index, bool exists) {
    const RootSide& side = in.sides[search(in.count, index, [&](int i) { return in.sides[i].first_item; })];
    const int64_t turn = in.counter ? *in.counter : in.turn;
    block = (turn * side.due + index - side.first_item) % side.blocks;
    const float* const known = side.statistics + block * kColumns;
    factor = side.factor;
    root = side.root;
    statistics = side.root_statistics + block * kRootColumns;
    unit = sqrtf(known[kWeight] * static_cast<float>(side.k)) * known[kRms];
    d = exists && side.active[block] && unit > 0 ? side.d : 0;
  }

  __device__ __forceinline__ Matrix factor_matrix(const View* views) const {
    return Matrix(views, factor, block, d, d);
  }
  __device__ __forceinline__ Matrix root_matrix(const View* views) const {
    return Matrix(views, root, block, d, d);
  }

  // Counts a root that was refused.
  __device__ __forceinline__ void finish(bool good, float residual) const {
    if (d == 0) return;
    if (!good) statistics[kRefusals] += 1;
    statistics[kResidual] = isfinite(residual) ? residual : INFINITY;
  }
};

}  // namespace kradagrad::cuda
