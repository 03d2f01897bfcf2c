#include "root_plan.h"

#include <iterator>

namespace kradagrad::cuda {
namespace {

constexpr int32_t kSymmetricMatrices = 2;  // G, and its polynomial

// There is a launch for each of these sides. For 512 and 1024 the wide kernel has larger matrices.
constexpr int32_t kRootSides[] = {64, kMiddleSide, kResidentSide, kWideSide, 512, 1024};

// The smallest of them that is sufficient for factors [d, d], or 0.
int32_t root_side(int32_t d, Precision precision, const Gpu& gpu) {
  const int32_t side = kernel_side(std::min(d, kWideSide), kSymmetricMatrices, precision, gpu);
  if (d <= kWideSide) return side;
  const auto* const least = std::lower_bound(std::begin(kRootSides), std::end(kRootSides), d);
  return side == kWideSide && least != std::end(kRootSides) ? *least : 0;
}

void plan_side(Planner& planner, const RootInputs& inputs, int32_t side) {
  Views views;
  std::vector<RootSide> sides;
  int64_t due = 0, others = 0;
  for (const RootSideTensors& in : inputs.sides) {
    if (in.blocks == 0 || in.d == 0 || root_side(in.d, inputs.precision, inputs.gpu) != side) continue;
    const int64_t share = inputs.turns == 0 ? 0 : (in.blocks + inputs.turns - 1) / inputs.turns;
    sides.push_back({due, others, in.blocks, share, in.d, in.k, views.add({in.factor}), views.add({in.root}),
                     in.statistics, in.root_statistics, in.active});
    due += share;
    others += in.blocks - share;
  }
  if (sides.empty()) return;
  for (RootSide& side : sides) side.first_other += due;
  const ResidentRoots parameters{planner.add(sides),
                                 planner.add(views.all()),
                                 static_cast<int32_t>(sides.size()),
                                 0,
                                 due + others,
                                 due,
                                 inputs.rule,
                                 inputs.turn,
                                 inputs.counter};
  if (side >= kWideSide) {
    const int32_t tiles = side / kTile;
    // Every CTA takes scratch memory, so there are only as many as have work on every step.
    launch_wide(planner, "root", inputs.gpu, std::max<int64_t>(due, 1), tiles, false,
                [&](char* scratch) { return WideRoots{parameters, scratch, tiles}; });
  } else {
    launch_resident(planner, "root", inputs.gpu, side, inputs.precision, kSymmetricMatrices, false,
                    parameters);
  }
}

}  // namespace

int32_t longest_root_side(Precision precision, const Gpu& gpu) {
  int32_t longest = 0;
  for (const int32_t side : kRootSides) {
    if (root_side(side, precision, gpu) > 0) longest = side;
  }
  return longest;
}

Plan plan_roots(const RootInputs& inputs) {
  Planner planner;
  for (const int32_t side : kRootSides) plan_side(planner, inputs, side);
  return planner.take();
}

}  // namespace kradagrad::cuda
