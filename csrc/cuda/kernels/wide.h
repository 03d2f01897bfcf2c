// The ops on factors for blocks of 129 to 256 a side, and roots up to 1024: a CTA does a work item from
// beginning to end, as the resident kernels do, with its matrices in global memory of its own instead of on
// chip; see wide_block.cuh.
#pragma once

#include "polar_roots.h"
#include "square_root_resident.h"

namespace kradagrad::cuda {

constexpr int kWideTiles = 16;  // a side of an update's and a product's matrices, of 16 elements each
constexpr int kWideStages = 3;  // of shared memory, 32 KB each
constexpr int32_t kWideShared = kWideStages * 2 * 16 * 1024;

// Of a matrix of so many tiles a side.
KRADAGRAD_HOST_DEVICE constexpr int64_t wide_bytes(int64_t tiles) { return tiles * tiles * 1024; }

// CTA i works on items i, i + grid, ... with kMatrices of its own, from scratch + i kMatrices wide_bytes on.
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
  int32_t tiles;  // a side
};

}  // namespace kradagrad::cuda
