// One side of one block in an update of factors: what the kernels that take it as a whole need to know of it.
#pragma once

#include "memory.cuh"
#include "square_root_resident.h"
#include "square_root_rule.cuh"

namespace kradagrad::cuda {

// Of no rows and columns where nothing is to be done. It lies in shared memory, so that it takes no registers
// from products; one thread writes it.
struct SideItem {
  ResidentSide side;
  Matrices grad;
  int64_t block;
  int32_t m, n, d, k;
  float scale;
  bool active, is_new, ready;
  GradientNorm norm;
  BlockUpdate update;

  // The work item of an index; one that does not exist is not active.
  __device__ __forceinline__ void find(const ResidentUpdate& in, int64_t index, bool exists) {
    const ResidentUpdateGroup& group =
        in.groups[search(in.count, index, [&](int i) { return in.groups[i].first_item; })];
    index -= group.first_item;
    block = index / group.sides;
    side = group.side[index % group.sides];
    grad = group.grad;
    is_new = statistics()[kWeight] == 0;
    scale = in.scales[group.first_block + block];
    active = exists && scale != 0;
    m = active ? group.m : 0;
    n = active ? group.n : 0;
    d = side.right ? n : m;
    k = side.right ? m : n;
  }

  __device__ __forceinline__ float* statistics() const { return side.statistics + block * kColumns; }

  __device__ __forceinline__ Matrix gradient(const View* views) const {
    return Matrix(views, grad, block, m, n);
  }
  __device__ __forceinline__ Matrix other_root(const View* views) const {
    return Matrix(views, side.other_root, block, k, k);
  }
  __device__ __forceinline__ Matrix factor(const View* views) const {
    return Matrix(views, side.factor, block, d, d);
  }

  // Whether F holds bf16 values.
  __device__ __forceinline__ bool exact_factor() const { return side.factor.bf16 && !is_new; }

  // What the statistics become; `coupled`: |U|^2 of a coupled update.
  __device__ __forceinline__ void prepare(const SquareRootRule& rule, float coupled) {
    const bool usable = norm.unit > 0 && isfinite(norm.sum);
    const float stretch = usable && rule.coupled ? coupled / norm.sum : 1;
    update = next_statistics(rule, statistics(), norm, scale, stretch, d, k);
    ready = active && update.readiness == Readiness::kReady;
  }

  // Stores them, or counts a block that was left out.
  __device__ __forceinline__ void finish(bool succeeded) const {
    if (!active || update.readiness == Readiness::kNone) return;
    if (succeeded) {
      statistics()[kRms] = update.rms;
      statistics()[kWeight] = update.weight;
      statistics()[kWhitened] = update.whitened;
    } else {
      statistics()[kFallbacks] += 1;
    }
  }
};

}  // namespace kradagrad::cuda
