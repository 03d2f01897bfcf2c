// kron_step_ and update_factor_ in the square-root form for blocks of up to 128 x 128, one CTA a block or a
// block and side; see resident_update.cu and resident_precondition.cu.
#pragma once

#include "square_root.h"

namespace kradagrad::cuda {

// One side of a group.
struct ResidentSide {
  int32_t right;  // whether its unfolding is G^T
  Matrices factor;
  Matrices other_root;  // of the other side; read by coupled updates
  float* statistics;    // [blocks, 4]
};

struct ResidentUpdateGroup {
  int64_t first_cta;    // one CTA a block and side, the sides of a block next to each other
  int64_t first_block;  // of the group, among all groups'
  int32_t m, n;
  int32_t sides;
  Matrices grad;
  ResidentSide side[2];
};

struct ResidentUpdate {
  const ResidentUpdateGroup* groups;
  const View* views;
  int32_t count;
  SquareRootRule rule;
  const float* scales;  // by block of all groups
};

struct ResidentProductGroup {
  int64_t first_cta;  // one CTA a block
  int64_t first_block;
  int32_t m, n;
  Matrices direction, left_root, right_root, out;
  const float* statistics;  // [blocks, 4], of the left side
};

struct ResidentPrecondition {
  const ResidentProductGroup* groups;
  const View* views;
  int32_t count;
  const float* scales;  // by block of all groups
  float* norms;         // by block of all groups
};

// Tiles of 1 KB in the two places that each kernel has, for sides of up to `tiles` tiles.
KRADAGRAD_HOST_DEVICE constexpr int first_place(int tiles) { return tiles * tiles; }
KRADAGRAD_HOST_DEVICE constexpr int second_place(int tiles) { return tiles * (tiles + 1); }

// Bytes of shared memory: both places, and a float a warp for sums.
constexpr int32_t resident_shared(int tiles) {
  return (first_place(tiles) + second_place(tiles)) * 1024 + tiles * 4;
}

}  // namespace kradagrad::cuda
