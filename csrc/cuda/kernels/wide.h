// The ops on factors for blocks of 129 to 256 a side: a CTA does a work item from beginning to end, as the
// resident kernels do, with its matrices in global memory of its own instead of on chip; see wide_block.cuh.
#pragma once

#include "polar_roots.h"
#include "square_root_resident.h"

namespace kradagrad::cuda {

constexpr int kWideTiles = 16;                              // a side, of 16 elements each
constexpr int kWideBytes = kWideTiles * kWideTiles * 1024;  // of a matrix
constexpr int kWideMatrices = 5;                            // of a CTA
constexpr int kWideStages = 3;                              // of shared memory, 32 KB each
constexpr int32_t kWideShared = kWideStages * 2 * 16 * 1024;

// CTA i works on items i, i + grid, ... with the matrices from scratch + i kWideMatrices kWideBytes on.
struct WideUpdate {
  ResidentUpdate update;
  char* scratch;
};

struct WidePrecondition {
  ResidentPrecondition precondition;
  char* scratch;
};

struct WideRoots {
  ResidentRoots roots;
  char* scratch;
};

}  // namespace kradagrad::cuda
