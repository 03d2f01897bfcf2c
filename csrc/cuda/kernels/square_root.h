// The update of factors in the square-root form and the two-sided product (kradagrad_ext/backends/base.py),
// as products of whole batches of blocks and the steps between them:
//
//   gradient_norms     |G| of every block, as a sum of squares in units of a power of two
//   products           coupled: G P_r and P_l G with their norms;   D P_r
//   start_sides        statistics of every block and side; new factors start at a multiple of I
//   products           B = scale F^T U;   M = H - decay I = B B^T;   the iteration for R;   F' = F R
//   finish_sides       factors and statistics of the blocks whose F' is finite
//   products           V = P_l (D P_r) / rms with its norm
//   finish_norms       the norms of V
//
// Damping C = rms sqrt(damped_updates weight damping k) F is appended to B as d more columns C^T.
#pragma once

#include "table.h"

namespace kradagrad::cuda {

// UpdateRule of base.py.
struct SquareRootRule {
  float decay, weight, damping, prior, damped_updates;
  int32_t refine;
  int32_t coupled;
};

// The norm of a block's gradient: |G|_F^2 = sum unit^2. A unit of 0 means a gradient of zeros.
struct GradientNorm {
  float sum, unit;
};

enum class Readiness : int32_t { kNone, kReady, kCounted };

// One block's side after start_sides.
struct BlockUpdate {
  Readiness readiness;
  float scale;     // the scale of B: s sqrt(weight), times |G| / |U| for a coupled U
  float rms;       // new
  float weight;    // new
  float whitened;  // the factor of |B|_F^2 in the statistic
};

// One side of all blocks of a group.
struct SquareRootSide {
  SquareRootRule rule;
  int32_t d, k;
  const BlockUpdate* updates;  // [blocks]
  float* statistics;           // [blocks, 4]
  const float* sizes;          // [blocks, size_partials]: |M|_F^2
  int32_t size_partials;
};

// alpha a + beta x + gamma I of a product's accumulators a, by the block's t and the step of the iteration:
// a_i and b_i are the coefficients of step i, Y0 = (M + decay I) / t (square_root_product.cuh).
enum class Combination : int32_t {
  kProduct,     // a
  kFirstY,      // Y1 = a1 Y0 - b1 Y0 Y0,             a = M M,   x = M
  kSecondT,     // T2 = a2 I - b2 (a1 Y1 - b1 Y0 Y1), a = M Y1,  x = Y1
  kSecondZ,     // Z2 = a1 T2 - b1 T2 Y0,             a = T2 M,  x = T2
  kPolynomial,  // T_i = a_i I - b_i a,               a = Z Y
  kOneStep,     // F' = restored F (a1 I - b1 Y0),    a = F M,   x = F
  kRestored,    // F' = restored a,                   a = F Z
};

enum class SquareRootEpilogue : int32_t {
  kStore,    // out = a
  kCoupled,  // out = a, partial |a / unit|^2, with the unit of the block's gradient
  kWhiten,   // out = scale a, partial |out|^2
  kGram,     // out = a and its mirror image, partial |out|^2
  kCombine,  // out = the combination; symmetric
  kFactor,   // out = the combination; partial: number of non-finite elements
  kOut,      // out = a / rms, partial |out|^2
};

// A matrix [rows, depth] of every block; if `transposed`, its memory is [depth, rows].
struct Operand {
  Matrices of;
  int32_t transposed;
};

struct SquareRootProduct {
  int64_t first_cta;
  int64_t first_block;  // the group's first block among all groups' blocks
  int64_t start;        // the first block of this launch, within the group
  int32_t side;         // index of the side, or -1 for a product without a factor
  int32_t rows, cols, depth;
  int32_t tile_cols;  // CTA tiles in a row of C
  int32_t tiles;      // CTA tiles of a block; symmetric: the lower ones
  int32_t symmetric;  // only the lower tiles are made; they are stored twice, mirrored
  SquareRootEpilogue epilogue;
  Combination combination;
  int32_t step;     // the i of a_i and b_i
  Operand a, b, x;  // without views: missing
  Matrices out;
  float* partial;                // [blocks, tiles], or null
  const GradientNorm* gradient;  // [blocks]; for kCoupled
  const float* rms;              // [blocks, 4]: the statistics that kOut divides by
};

// Number of k that are processed at a time, and of the buffers that they pass through.
constexpr int kProductDepth = 32;
constexpr int kProductStages = 3;

struct SquareRootProducts {
  const SquareRootProduct* products;
  const SquareRootSide* sides;
  const View* views;
  int32_t count;
  const float* scales;  // [blocks of all groups]
};

// One side of a group before and after its update.
struct SquareRootGroupSide {
  int32_t d, k;
  Matrices factor, updated;  // updated: F', float32
  float* statistics;
  BlockUpdate* updates;
  const float* coupled;   // [blocks, coupled_partials]: |U|^2 in the gradient's unit, or null
  const float* whitened;  // [blocks, whitened_partials]: |B|_F^2
  const float* failed;    // [blocks, failed_partials]
  int32_t coupled_partials, whitened_partials, failed_partials;
  Matrices damping;  // [d, d]: C^T, written by start_sides; without views: no damping
};

struct SquareRootGroup {
  int64_t first_cta;  // one CTA per block
  int64_t first_block;
  int64_t start, blocks;  // the blocks of this launch
  int32_t m, n;
  int32_t sides;
  Matrices grad;
  GradientNorm* gradient;  // [blocks of the group]
  SquareRootGroupSide side[2];
};

struct SquareRootGroups {
  const SquareRootGroup* groups;
  const View* views;
  int32_t count;
  SquareRootRule rule;
  const float* scales;
};

// norms = the sum of a block's partial sums; one warp per block.
struct NormSum {
  int64_t first_cta;
  int64_t first_block, start;
  const float* partials;  // [blocks, count]; null: no elements
  int32_t count;
};

struct NormSums {
  const NormSum* sums;
  int32_t count;
  const float* scales;
  float* norms;  // [blocks of all groups]
};

constexpr int kBlockThreads = 256;

}  // namespace kradagrad::cuda
