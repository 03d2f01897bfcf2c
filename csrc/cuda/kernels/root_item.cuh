// The work item of one factor whose root is computed.
#pragma once

#include "memory.cuh"
#include "polar_roots.h"
#include "square_root_rule.cuh"

namespace kradagrad::cuda {

// The block of a work item, which may be due for a root.
struct RootCandidate {
  const RootSide* side;
  int64_t block;
  float unit;     // sqrt(w k) rms
  bool is_taken;  // active, with a gradient so far; and due on this turn, or without a root so far

  __device__ __forceinline__ RootCandidate(const ResidentRoots& in, int64_t item) {
    const bool is_due = item < in.due;
    const auto first = [&](int i) { return is_due ? in.sides[i].first_due : in.sides[i].first_other; };
    const int number = search(in.count, item, first);
    side = in.sides + number;
    const int64_t place = item - first(number) + (is_due ? 0 : side->due);
    block = ((in.counter ? *in.counter : in.turn) * side->due + place) % side->blocks;
    const float* const known = side->statistics + block * kColumns;
    unit = sqrtf(known[kWeight] * static_cast<float>(side->k)) * known[kRms];
    const bool is_new = side->root_statistics[block * kRootColumns + kResidual] == 0;
    is_taken = side->active[block] && unit > 0 && (is_due || is_new);
  }
};

// An item has no rows if there is no work. It is in shared memory, to save registers; one warp finds it.
struct RootItem {
  enum { kFactor, kRoot, kMatrices };
  Matrix matrices[kMatrices];
  float* statistics;  // of the root
  int64_t index;
  int32_t d;
  float unit;
  bool active;

  // Becomes the first of the work items `from`, from + step, ... whose block is taken. Each lane tests one of
  // them; then each of the first kMatrices lanes finds one matrix.
  __device__ __forceinline__ void find(const ResidentRoots& in, int64_t from, int64_t step, int lane) {
    for (; from < in.items; from += 32 * step) {
      const int64_t mine = from + lane * step;
      const unsigned taken = __ballot_sync(0xffffffffu, mine < in.items && RootCandidate(in, mine).is_taken);
      if (taken == 0) continue;
      if (lane < kMatrices) become(in, from + __clz(__brev(taken)) * step, lane);
      return;
    }
    if (lane >= kMatrices) return;
    matrices[lane] = Matrix::empty();
    if (lane > 0) return;
    index = in.items;
    d = 0;
    unit = 0;
    active = false;
  }

  __device__ __forceinline__ void become(const ResidentRoots& in, int64_t item, int lane) {
    const RootCandidate found(in, item);
    const RootSide& side = *found.side;
    matrices[lane] = Matrix(in.views, lane == kFactor ? side.factor : side.root, found.block, side.d, side.d);
    if (lane > 0) return;
    statistics = side.root_statistics + found.block * kRootColumns;
    index = item;
    d = side.d;
    unit = found.unit;
    active = true;
  }

  __device__ __forceinline__ const Matrix& factor() const { return matrices[kFactor]; }
  __device__ __forceinline__ const Matrix& root() const { return matrices[kRoot]; }

  // Writes the residual, and counts a refused root.
  __device__ __forceinline__ void finish(bool good, float residual) const {
    if (!active) return;
    if (!good) statistics[kRefusals] += 1;
    statistics[kResidual] = isfinite(residual) ? fmaxf(residual, kLeastResidual) : INFINITY;
  }
};

}  // namespace kradagrad::cuda
