// One factor whose root is made: what the kernels need to know of it.
#pragma once

#include "memory.cuh"
#include "polar_roots.h"
#include "square_root_rule.cuh"

namespace kradagrad::cuda {

// Of no rows where nothing is to be done. In shared memory, to spare registers; one warp finds it.
struct RootItem {
  enum { kFactor, kRoot, kMatrices };
  Matrix matrices[kMatrices];
  float* statistics;  // of the root
  int64_t index;
  int32_t d;
  float unit;  // sqrt(w k) rms
  bool active;

  // Becomes the first of the work items `from`, from + step, ... that has a root: they are the blocks of
  // every side that are due. Every lane finds a matrix.
  __device__ __forceinline__ void find(const ResidentRoots& in, int64_t from, int64_t step, int lane) {
    if (lane >= kMatrices) return;
    const int64_t turn = in.counter ? *in.counter : in.turn;
    for (; from < in.items; from += step) {
      const RootSide& side = in.sides[search(in.count, from, [&](int i) { return in.sides[i].first_item; })];
      const int64_t block = (turn * side.due + from - side.first_item) % side.blocks;
      const float* const known = side.statistics + block * kColumns;
      const float own = sqrtf(known[kWeight] * static_cast<float>(side.k)) * known[kRms];
      if (!side.active[block] || !(own > 0)) continue;
      matrices[lane] = Matrix(in.views, lane == kFactor ? side.factor : side.root, block, side.d, side.d);
      if (lane > 0) return;
      statistics = side.root_statistics + block * kRootColumns;
      index = from;
      d = side.d;
      unit = own;
      active = true;
      return;
    }
    matrices[lane] = Matrix::empty();
    if (lane > 0) return;
    index = in.items;
    d = 0;
    unit = 0;
    active = false;
  }

  __device__ __forceinline__ const Matrix& factor() const { return matrices[kFactor]; }
  __device__ __forceinline__ const Matrix& root() const { return matrices[kRoot]; }

  // Counts a root that was refused.
  __device__ __forceinline__ void finish(bool good, float residual) const {
    if (!active) return;
    if (!good) statistics[kRefusals] += 1;
    statistics[kResidual] = isfinite(residual) ? residual : INFINITY;
  }
};

}  // namespace kradagrad::cuda
