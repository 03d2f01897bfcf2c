// One block in a two-sided product: what the kernels that take it as a whole need to know of it.
#pragma once

#include "memory.cuh"
#include "square_root_resident.h"
#include "square_root_rule.cuh"

namespace kradagrad::cuda {

// Of no rows and columns where nothing is to be done. It lies in shared memory, so that it takes no registers
// from products; one thread writes it.
struct ProductItem {
  ResidentProductGroup group;
  int64_t block;
  int32_t m, n;
  float rms;
  bool exists, active;

  // The work item of an index; one that does not exist is not active.
  __device__ __forceinline__ void find(const ResidentPrecondition& in, int64_t index, bool exists) {
    group = in.groups[search(in.count, index, [&](int i) { return in.groups[i].first_item; })];
    block = index - group.first_item;
    rms = group.statistics[block * kColumns + kRms];
    this->exists = exists;
    active = exists && in.scales[group.first_block + block] != 0;
    m = active ? group.m : 0;
    n = active ? group.n : 0;
  }

  __device__ __forceinline__ Matrix direction(const View* views) const {
    return Matrix(views, group.direction, block, m, n);
  }
  __device__ __forceinline__ Matrix right_root(const View* views) const {
    return Matrix(views, group.right_root, block, n, n);
  }
  __device__ __forceinline__ Matrix left_root(const View* views) const {
    return Matrix(views, group.left_root, block, m, m);
  }
  __device__ __forceinline__ Matrix out(const View* views) const {
    return Matrix(views, group.out, block, m, n);
  }

  __device__ __forceinline__ void set_norm(const ResidentPrecondition& in, float norm) const {
    if (exists) in.norms[group.first_block + block] = norm;
  }
};

}  // namespace kradagrad::cuda
