// What comes before and after the grouped products of a factor update: the first gradient, and the books.
#pragma once

#include "table.h"

namespace kradagrad::cuda {

// One side of a group before its update.
struct StartFactor {
  int64_t first_cta;    // one CTA a block
  int64_t first_block;  // of the group, among all groups'
  int32_t d;
  int32_t rows, cols;  // of the gradient's blocks
  Matrices factor, grad;
  float* statistics;  // [blocks, 2]: mean of tr(S) / d, fallbacks
  float* pending;     // [chunks + 1, blocks], written
  int32_t chunks;
  int64_t blocks;
  float* energy;  // [blocks, energy_partials]: |A|_F^2, or null where the other side sums it up
  int32_t energy_partials;
};

struct StartFactors {
  const StartFactor* factors;
  const View* views;
  int32_t count;
  FactorRule rule;
  const bool* active;
};

// One side of a group after its update.
struct FinishSide {
  int32_t d;
  int32_t chunks;
  float* statistics;
  const float* pending;  // [blocks] of the first chunk
  const float* failed;   // [chunks, blocks]
};

struct FinishGroup {
  int64_t first_cta;  // one CTA a block
  int64_t first_block, blocks;
  int32_t sides;
  int32_t energy_partials, norm_partials;
  FinishSide side[2];
  const float* energy;  // [blocks, energy_partials]: |G|_F^2; read with damping alone
  const float* norm;    // [blocks, norm_partials]: |P|_F^2, or null
};

struct FinishGroups {
  const FinishGroup* groups;
  int32_t count;
  FactorRule rule;
  const bool* active;
  float* norms;  // by block of all groups
};

// sum = <B, B^T> of a matrix B [d, d] of every block: the squared Frobenius norm of any symmetric matrix with
// the same eigenvalues. One CTA a block.
struct TraceOfSquare {
  int64_t first_cta;
  int64_t first_block;  // of the group, among all groups'
  int64_t start;        // the first block that is worked on, within the group
  int32_t d;
  Matrices matrix;
  const float* pending;  // [blocks]; 0: takes no part
  float* sum;            // [blocks]
};

struct TracesOfSquares {
  const TraceOfSquare* traces;
  const View* views;
  int32_t count;
  const bool* active;
};

constexpr int kStartThreads = 256;

}  // namespace kradagrad::cuda
