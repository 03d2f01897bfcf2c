// kron_step_ and update_factor_ in the square-root form for blocks of up to 128 x 128. Each work item, a
// block or a side of a block, is processed on chip; see resident_update.cu and resident_precondition.cu.
#pragma once

#include "square_root.h"

namespace kradagrad::cuda {

// One side of a group.
struct ResidentSide {
  int32_t right;  // true if its unfolding is G^T
  Matrices factor;
  Matrices other_root;  // the other side's root, read by coupled updates
  float* statistics;    // [blocks, 4]
};

struct ResidentUpdateGroup {
  int64_t first_item;   // one per block and side; the sides of a block are consecutive
  int64_t first_block;  // the group's first block among all groups' blocks
  int32_t m, n;
  int32_t sides;
  Matrices grad;
  ResidentSide side[2];
};

struct ResidentUpdate {
  const ResidentUpdateGroup* groups;
  const View* views;
  int32_t count;
  int32_t places;  // a team's tiles of shared memory
  int64_t items;
  SquareRootRule rule;
  const float* scales;  // [blocks of all groups]
};

struct ResidentProductGroup {
  int64_t first_item;  // one per block
  int64_t first_block;
  int32_t m, n;
  Matrices direction, left_root, right_root, out;
  const float* statistics;  // [blocks, 4], those of the left side
};

struct ResidentPrecondition {
  const ResidentProductGroup* groups;
  const View* views;
  int32_t count;
  int32_t places;
  int64_t items;
  const float* scales;  // [blocks of all groups]
  float* norms;         // [blocks of all groups]
};

constexpr int kResidentThreads = 256;

// Number of teams of a CTA, each with one work item, for sides of up to `tiles` tiles.
KRADAGRAD_HOST_DEVICE constexpr int teams_of(int tiles) { return tiles > 6 ? 1 : 2; }

// A team's tiles of 1 KB: the place of a matrix, and a second place for a matrix or for symmetric matrices. A
// symmetric one takes its lower tiles, rounded up to an even number: a team of four warps stages two tiles at
// a time.
KRADAGRAD_HOST_DEVICE constexpr int first_place(int tiles) { return tiles * tiles; }
KRADAGRAD_HOST_DEVICE constexpr int symmetric_tiles(int tiles) {
  return (tiles * (tiles + 1) / 2 + 1) / 2 * 2;
}
constexpr int places_of(int tiles, int symmetric_matrices) {
  const int symmetric = symmetric_matrices * symmetric_tiles(tiles);
  return first_place(tiles) + (symmetric > first_place(tiles) ? symmetric : first_place(tiles));
}

// Symmetric matrices of an update: Y, Z and T of the iteration for R; with refine 2, T takes the place of Y.
constexpr int symmetric_matrices(int refine) { return refine > 2 ? 3 : 2; }

// Symmetric matrices of a two-sided product.
constexpr int kProductRoots = 2;

// Bytes of dynamic shared memory of a CTA.
constexpr int32_t resident_shared(int tiles, int places) { return teams_of(tiles) * places * 1024; }
constexpr int32_t kStaticShared = 1024;  // upper bound of the static memory: sums and work items

}  // namespace kradagrad::cuda
