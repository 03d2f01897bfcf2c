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

// What becomes of the accumulators a = A B^T. n is the side's `weight` times the factor's scale.
enum class Epilogue : int32_t {
  kStore,       // out = a
  kUpdate,      // out = a, partial |a|^2
  kFactor,      // out = pending a, partial weight <out, x>, energy |x|^2
  kGram,        // out = weight a + I, partial weight^2 |a|^2; symmetric
  kNorm,        // partial |a|^2, nothing stored
  kWide,        // out = weight a
  kPolynomial,  // out = 5 I - 8 s x + 4 s^2 a; symmetric
  kScaled,      // out = s a; symmetric
  kDowndate,    // x = pending x - weight / t a; symmetric, in place
};

// One side of one group's factor updates, on one chunk of the unfolding's columns.
struct Side {
  float weight;
  FactorScale scale;
  int32_t d;
  int32_t bound_partials;  // of each block
  const float* bound;      // [blocks, bound_partials], whose sum gives t
  const float* pending;    // [blocks]: x = pending X; 0 where the block takes no part
  float* next_pending;     // [blocks], for the next chunk
  float* failed;           // [blocks]: whether t was not finite
};

struct Product {
  int64_t first_cta;
  int64_t first_block;  // of the group, among all groups'
  int32_t side;         // index, or -1 for a product that belongs to no factor
  int32_t rows, cols, depth;
  int32_t tile_cols;   // CTA tiles to a row of C
  int32_t tiles;       // CTA tiles of a block; symmetric: the lower ones
  int32_t symmetric;
  Epilogue epilogue;
  int32_t divide;      // s = 1 / t, else 1
  Operand a, b, x;
  Matrices out;
  float* partial;      // [blocks, tiles], or null
  float* energy;       // [blocks, energy_partials] from this product's own slots on, or null
  int32_t energy_partials;
};

struct GroupedProduct {
  const Product* products;
  const Side* sides;
  const View* views;
  int32_t count;
  const bool* active;  // by block of all groups
};

}  // namespace kradagrad::cuda
