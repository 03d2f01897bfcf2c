// How the kernels that keep a block on chip are chosen and launched: by the longest side that one takes.
#pragma once

#include <algorithm>
#include <iterator>
#include <string>

#include "../kernels/square_root_resident.h"
#include "kernel_choice.h"
#include "launch.h"

namespace kradagrad::cuda {

constexpr int32_t kTile = 16;  // tile.cuh
constexpr int32_t kResidentSides[] = {64, 96, kResidentSide};

// The smallest kernels that take a side.
inline int32_t resident_side(int32_t side) {
  return *std::lower_bound(std::begin(kResidentSides), std::end(kResidentSides) - 1, side);
}

inline bool fits_resident(int32_t kernel_side, int32_t symmetric_matrices, int32_t shared_limit) {
  const int32_t tiles = kernel_side / kTile;
  return resident_shared(tiles, places_of(tiles, symmetric_matrices)) + kStaticShared <= shared_limit;
}

// One team a work item of `parameters`.
template <class Parameters>
void launch_resident(Planner& planner, const std::string& kernel, int32_t side, Precision precision,
                     const Parameters& parameters) {
  const int32_t tiles = side / kTile, teams = teams_of(tiles);
  planner.launch(kernel + std::to_string(side) + "_" + name_of(precision),
                 (parameters.items + teams - 1) / teams, kResidentThreads,
                 resident_shared(tiles, parameters.places), parameters);
}

}  // namespace kradagrad::cuda
