// Products of whole batches of blocks, C = A B^T for every block of every group, one launch for all
// (grouped_product.cuh). A list of them makes up the factor updates and the two-sided product of blocks that
// do not fit the resident kernel (csrc/cuda/plan/).
#pragma once

#include "table.h"

namespace kradagrad::cuda {

// A matrix [rows, depth] of every block, or where `transposed` its memory holds [depth, rows]; from an offset
// into the memory's matrix on.
struct Operand {
  Matrices of;
  int32_t transposed;
  int32_t first_row, first_col;
};

// What becomes of the accumulators a = A B^T. B below is N - I = weight A^T x A (base.py), s = 1 / t where
// the product says `divide`, else 1. Y is stored divided by the side's unit u (factor_rule.cuh), so that its
// square does not overflow.
enum class Epilogue : int32_t {
  kStore,       // out = a
  kUpdate,      // out = a, partial |a|^2; out may be missing
  kFactor,      // out = pending a / u, partial weight u <out, x>, energy |x|^2
  kGram,        // out = weight u a, partial |out|^2; out may be missing
  kStart,       // out = 5 I - 8 W + 4 W^2 for W = s (I + x), a = x^2
  kPolynomial,  // out = 5 I - 8 x + 4 a, a = x^2
  kScaled,      // out = s (a + x); x may be missing
  kDowndate,    // x = pending x - weight u^2 / t a, in place
};

// One side of one group's factor updates, on one chunk of the unfolding's columns.
struct Side {
  FactorRule rule;
  int32_t d;
  int32_t bound_partials;   // of each block
  const float* bound;       // [blocks, bound_partials], whose sum gives t
  const float* pending;     // [blocks]: x = pending X; 0 where the block takes no part
  float* next_pending;      // [blocks], for the next chunk
  float* failed;            // [blocks]: whether t or the new mean was not finite
  const float* statistics;  // [blocks, 2]
  const float* energy;      // [blocks, energy_partials]: |A|_F^2; read with damping alone
  int32_t energy_partials;
};

struct Product {
  int64_t first_cta;
  int64_t first_block;  // of the group, among all groups'
  int64_t start;        // the first block that is worked on, within the group
  int32_t side;         // index, or -1 for a product that belongs to no factor
  int32_t rows, cols, depth;
  int32_t tile_cols;  // CTA tiles to a row of C
  int32_t tiles;      // CTA tiles of a block; symmetric: the lower ones
  int32_t symmetric;  // only the lower tiles are made; what is stored is mirrored
  Epilogue epilogue;
  int32_t divide;
  Operand a, b, x;  // a matrix without views is missing
  Matrices out;
  float* partial;  // [blocks, tiles], or null
  float* energy;   // [blocks, energy_partials] from this product's own slots on, or null
  int32_t energy_partials;
};

// k is worked off this many at a time, through so many buffers.
constexpr int kProductDepth = 32;
constexpr int kProductStages = 3;

struct GroupedProduct {
  const Product* products;
  const Side* sides;
  const View* views;
  int32_t count;
  const bool* active;  // by block of all groups
};

}  // namespace kradagrad::cuda
