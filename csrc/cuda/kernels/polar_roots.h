// polar_roots_: P = (F F^T)^(1/2) of several sides' factors, by products alone; see resident_root.cu.
#pragma once

#include "table.h"

namespace kradagrad::cuda {

constexpr int kMostPolarSteps = 8;

// Every step is Q <- Q (a I + b G + c G^2), G = Q^T Q; a root whose residual exceeds `bound` is refused.
struct PolarRule {
  float a[kMostPolarSteps], b[kMostPolarSteps], c[kMostPolarSteps];
  int32_t steps;
  float bound;
};

// One side of a group: N blocks, of which `due` are due on this turn.
struct RootSide {
  int64_t first_due, first_other;  // work items, one per block; due blocks of all sides come first
  int64_t blocks, due;
  int32_t d, k;
  Matrices factor, root;
  const float* statistics;  // [blocks, 4], those of the factors
  float* root_statistics;   // [blocks, 4]
  const bool* active;       // [blocks]
};

struct ResidentRoots {
  const RootSide* sides;
  const View* views;
  int32_t count;
  int32_t places;  // a team's tiles of shared memory
  int64_t items, due;
  PolarRule rule;
  int64_t turn;            // due: blocks turn * due, turn * due + 1, ... modulo blocks
  const int64_t* counter;  // the turn, if not null
};

constexpr float kLeastResidual = 1.17549435e-38f;  // 0 means that the factor has no root yet

enum RootColumn { kRefusals, kResidual, kRootColumns = 4 };

}  // namespace kradagrad::cuda
