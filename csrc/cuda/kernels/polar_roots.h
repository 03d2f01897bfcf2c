// polar_roots_: P = (F F^T)^(1/2) of the factors of several sides, by products alone; see resident_root.cu.
#pragma once

#include "table.h"

namespace kradagrad::cuda {

constexpr int kMostPolarSteps = 8;

// Q <- Q (a I + b G + c G^2), G = Q^T Q, step by step; a root with a larger residual is refused.
struct PolarRule {
  float a[kMostPolarSteps], b[kMostPolarSteps], c[kMostPolarSteps];
  int32_t steps;
  float bound;
};

// One side of a group: N blocks, of which `due` have their turn.
struct RootSide {
  int64_t first_due, first_other;  // work items: one a block, those of all sides that have their turn first
  int64_t blocks, due;
  int32_t d, k;
  Matrices factor, root;
  const float* statistics;  // [blocks, 4], of the factors
  float* root_statistics;   // [blocks, 4]
  const bool* active;       // [blocks]
};

struct ResidentRoots {
  const RootSide* sides;
  const View* views;
  int32_t count;
  int32_t places;  // tiles of shared memory of a team
  int64_t items, due;
  PolarRule rule;
  int64_t turn;            // the blocks from turn * due on, round about, are due
  const int64_t* counter;  // where it is not null, the turn
};

constexpr float kLeastResidual = 1.17549435e-38f;  // 0 says that no root was made since the factor started

enum RootColumn { kRefusals, kResidual, kRootColumns = 4 };

}  // namespace kradagrad::cuda
