// The ops on factors for blocks of 129 to 256 a side, and roots up to 1024. As in the resident kernels, a CTA
// processes a work item from beginning to end, but its matrices are in global memory that only this CTA uses,
// instead of on chip; see wide_block.cuh.
#pragma once

#include "polar_roots.h"
#include "square_root_resident.h"

namespace kradagrad::cuda {

constexpr int kWideTiles = 16;  // tiles of 16 elements in a side of the matrices of updates and products
constexpr int kWideStages = 3;  // stages of shared memory, 32 KB each
constexpr int32_t kWideShared = kWideStages * 2 * 16 * 1024;

// Bytes of a matrix with `tiles` tiles a side.
KRADAGRAD_HOST_DEVICE constexpr int64_t wide_bytes(int64_t tiles) { return tiles * tiles * 1024; }

// CTA i processes items i, i + grid, ... with kMatrices matrices from scratch + i kMatrices wide_bytes on.
struct WideUpdate {
  static constexpr int kMatrices = 5;
  ResidentUpdate update;
  char* scratch;
};

struct WidePrecondition {
  static constexpr int kMatrices = 3;
  ResidentPrecondition precondition;
  char* scratch;
};

struct WideRoots {
  static constexpr int kMatrices = 4;
  ResidentRoots roots;
  char* scratch;
  int32_t tiles;  // tiles in a side of a matrix
};

}  // namespace kradagrad::cuda
