// The work item of the two-sided product of one block, for the kernels that process whole blocks.
#pragma once

#include "memory.cuh"
#include "square_root_resident.h"
#include "square_root_rule.cuh"

namespace kradagrad::cuda {

// An item has no rows and columns if there is no work. It is in shared memory, so that it takes no registers
// from products; one warp finds it.
struct ProductItem {
  enum { kDirection, kRightRoot, kLeftRoot, kOut, kMatrices };
  Matrix matrices[kMatrices];
  int64_t index;
  int32_t m, n;
  float rms;
  float* norm;
  bool active;

  // Becomes the first of the work items `from`, from + step, ... whose block takes part; sets the norms of
  // the items before it to zero. Each of the first kMatrices lanes finds one matrix.
  __device__ __forceinline__ void find(const ResidentPrecondition& in, int64_t from, int64_t step, int lane) {
    if (lane >= kMatrices) return;
    for (; from < in.items; from += step) {
      const ResidentProductGroup& group =
          in.groups[search(in.count, from, [&](int i) { return in.groups[i].first_item; })];
      const int64_t block = from - group.first_item, number = group.first_block + block;
      if (in.scales[number] != 0) {
        take(in, group, block, lane);
        if (lane == 0) index = from;
        return;
      }
      if (lane == 0) in.norms[number] = 0;
    }
    matrices[lane] = Matrix::empty();
    if (lane > 0) return;
    index = in.items;
    m = n = 0;
    rms = 0;
    active = false;
  }

  __device__ __forceinline__ const Matrix& direction() const { return matrices[kDirection]; }
  __device__ __forceinline__ const Matrix& right_root() const { return matrices[kRightRoot]; }
  __device__ __forceinline__ const Matrix& left_root() const { return matrices[kLeftRoot]; }
  __device__ __forceinline__ const Matrix& out() const { return matrices[kOut]; }

 private:
  __device__ __forceinline__ void take(const ResidentPrecondition& in, const ResidentProductGroup& group,
                                       int64_t block, int lane) {
    const Matrices& of = lane == kDirection   ? group.direction
                         : lane == kRightRoot ? group.right_root
                         : lane == kLeftRoot  ? group.left_root
                                              : group.out;
    matrices[lane] = Matrix(in.views, of, block, lane == kRightRoot ? group.n : group.m,
                            lane == kLeftRoot ? group.m : group.n);
    if (lane > 0) return;
    m = group.m, n = group.n;
    rms = group.statistics[block * kColumns + kRms];
    norm = in.norms + group.first_block + block;
    active = true;
  }
};

}  // namespace kradagrad::cuda
