// Choice and launch of the kernels that process whole blocks: resident_* keep a block on chip, wide_* in
// global memory.
#pragma once

#include <algorithm>
#include <string>

#include "../kernels/square_root_resident.h"
#include "../kernels/wide.h"
#include "gpu.h"
#include "kernel_choice.h"
#include "launch.h"

namespace kradagrad::cuda {

constexpr int32_t kTile = 16;  // tile.cuh
constexpr int32_t kWideSide = kWideTiles * kTile;
constexpr int32_t kMiddleSide = 96;
constexpr int32_t kKernelSides[] = {64, kMiddleSide, kResidentSide, kWideSide};

// The longest side that the smallest kernels for blocks of side `longest` accept, or 0 if no kernel fits.
// kMiddleSide and kWideSide exist only in the default precision.
inline int32_t kernel_side(int32_t longest, int32_t symmetric_matrices, Precision precision, const Gpu& gpu) {
  for (const int32_t side : kKernelSides) {
    const int32_t tiles = side / kTile;
    const bool wide = side == kWideSide;
    const int32_t shared = wide ? kWideShared : resident_shared(tiles, places_of(tiles, symmetric_matrices));
    if ((side == kMiddleSide || wide) && precision != Precision::kBf16x3) continue;
    if (longest <= side && shared + kStaticShared <= gpu.shared) return side;
  }
  return 0;
}

// Number of CTAs for `rounds` work items per team. If long and short items alternate, as the two sides of a
// long block do, the number is odd: with an even number every CTA would get items of only one kind.
inline int64_t ctas_for(int64_t rounds, int64_t most, bool alternate) {
  if (rounds <= most) return rounds;
  return alternate && most % 2 == 0 ? most - 1 : most;
}

// Number of CTAs that fit an SM, by shared memory, of which a CTA takes 1 KB more than it uses, and by the
// registers of the kernels' launch bounds.
inline int64_t ctas_of_sm(int32_t tiles, Precision precision, int32_t shared, const Gpu& gpu) {
  const int32_t by_registers = tiles > 4 || precision == Precision::kTf32x3 ? 1 : 2;
  return std::clamp((gpu.shared + kStaticShared) / (shared + kStaticShared), 1, by_registers);
}

// Launches as many CTAs as run at the same time; their teams take the work items of `parameters` in rounds.
// Sets parameters.places.
template <class Parameters>
void launch_resident(Planner& planner, const std::string& op, const Gpu& gpu, int32_t side,
                     Precision precision, int32_t symmetric_matrices, bool alternate, Parameters parameters) {
  const int32_t tiles = side / kTile, teams = teams_of(tiles);
  parameters.places = places_of(tiles, symmetric_matrices);
  const int32_t shared = resident_shared(tiles, parameters.places);
  const int64_t rounds = (parameters.items + teams - 1) / teams;
  const int64_t most = gpu.multiprocessors * ctas_of_sm(tiles, precision, shared, gpu);
  planner.launch("resident_" + op + "_" + std::to_string(side) + "_" + name_of(precision),
                 ctas_for(rounds, most, alternate && teams == 1), kResidentThreads, shared, parameters);
}

// Upper bound of the memory of a launch's matrices; those of a root of 1024 a side take 16 MB.
constexpr int64_t kMostWideScratch = int64_t{2} << 30;

// The same for wide kernels. Every CTA has separate matrices of `tiles` tiles a side, in scratch memory that
// is released afterwards. make(scratch) returns the kernel's parameters.
template <class Make>
void launch_wide(Planner& planner, const std::string& op, const Gpu& gpu, int64_t items, int32_t tiles,
                 bool alternate, const Make& make) {
  constexpr int kMatrices = decltype(make(nullptr))::kMatrices;
  const int64_t mark = planner.mark(), bytes = kMatrices * wide_bytes(tiles);
  const int64_t most = std::min<int64_t>(gpu.multiprocessors, kMostWideScratch / bytes);
  const int64_t ctas = ctas_for(items, most, alternate);
  float* const scratch = planner.floats(ctas * bytes / static_cast<int64_t>(sizeof(float)));
  planner.launch("wide_" + op, ctas, kResidentThreads, kWideShared, make(reinterpret_cast<char*>(scratch)));
  planner.release(mark);
}

}  // namespace kradagrad::cuda
