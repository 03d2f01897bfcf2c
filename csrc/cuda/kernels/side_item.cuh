// The work item of one side of one block in an update of factors, for the kernels that process whole blocks.
#pragma once

#include "memory.cuh"
#include "square_root_resident.h"
#include "square_root_rule.cuh"

namespace kradagrad::cuda {

// An item has no rows and columns if there is no work. It is in shared memory, so that it takes no registers
// from products; one warp finds it, and one thread writes the rest.
struct SideItem {
  enum { kGrad, kRoot, kFactor, kMatrices };
  Matrix matrices[kMatrices];
  float* statistics;  // of the block
  int64_t index;
  int32_t m, n, d, k;
  float scale;
  bool right, active, is_new, ready;
  GradientNorm norm;
  BlockUpdate update;

  // Becomes the first of the work items `from`, from + step, ... whose block takes part. Each of the first
  // kMatrices lanes finds one matrix.
  __device__ __forceinline__ void find(const ResidentUpdate& in, int64_t from, int64_t step, int lane) {
    if (lane >= kMatrices) return;
    for (; from < in.items; from += step) {
      const ResidentUpdateGroup& group =
          in.groups[search(in.count, from, [&](int i) { return in.groups[i].first_item; })];
      const int64_t within = from - group.first_item, block = within >> (group.sides - 1);
      const float block_scale = in.scales[group.first_block + block];
      if (block_scale == 0) continue;
      take(in.views, group, group.side[within & (group.sides - 1)], block, lane);
      if (lane > 0) return;
      scale = block_scale;
      index = from;
      active = true;
      return;
    }
    matrices[lane] = Matrix::empty();
    if (lane > 0) return;
    index = in.items;
    m = n = d = k = 0;
    right = is_new = active = false;
  }

  __device__ __forceinline__ const Matrix& grad() const { return matrices[kGrad]; }
  __device__ __forceinline__ const Matrix& factor() const { return matrices[kFactor]; }
  // The other side's root, for coupled updates.
  __device__ __forceinline__ const Matrix& root() const { return matrices[kRoot]; }

  // True if all values of F are bf16 numbers.
  __device__ __forceinline__ bool exact_factor() const { return factor().bf16 && !is_new; }

  // Computes the next statistics; returns true if the block is ready. `coupled`: |U|^2 of a coupled update.
  __device__ __forceinline__ bool prepare(const SquareRootRule& rule, float coupled) {
    const bool usable = norm.unit > 0 && isfinite(norm.sum);
    const float stretch = usable && rule.coupled ? coupled / norm.sum : 1;
    update = active ? next_statistics(rule, statistics, norm, scale, stretch, d, k) : BlockUpdate{};
    ready = update.readiness == Readiness::kReady;
    return ready;
  }

  // Stores the statistics, or counts a block that was left out.
  __device__ __forceinline__ void finish(bool succeeded) const {
    if (update.readiness == Readiness::kNone) return;
    if (succeeded) {
      statistics[kRms] = update.rms;
      statistics[kWeight] = update.weight;
      statistics[kWhitened] = update.whitened;
    } else {
      statistics[kFallbacks] += 1;
    }
  }

 private:
  __device__ __forceinline__ void take(const View* views, const ResidentUpdateGroup& group,
                                       const ResidentSide& side, int64_t block, int lane) {
    const bool is_right = side.right != 0;
    const int side_d = is_right ? group.n : group.m, side_k = is_right ? group.m : group.n;
    const Matrices& of = lane == kGrad ? group.grad : lane == kRoot ? side.other_root : side.factor;
    const int rows = lane == kGrad ? group.m : lane == kRoot ? side_k : side_d;
    const int cols = lane == kGrad ? group.n : rows;
    matrices[lane] = of.views > 0 ? Matrix(views, of, block, rows, cols) : Matrix::empty();
    if (lane > 0) return;
    m = group.m, n = group.n, d = side_d, k = side_k;
    right = is_right;
    statistics = side.statistics + block * kColumns;
    is_new = statistics[kWeight] == 0;
  }
};

}  // namespace kradagrad::cuda
