#include "root_plan.h"

namespace kradagrad::cuda {
namespace {

constexpr int32_t kSymmetricMatrices = 2;  // G, and the polynomial of it

int32_t side_of(int32_t d, const RootInputs& inputs) {
  return kernel_side(d, kSymmetricMatrices, inputs.precision, inputs.gpu);
}

void plan_side(Planner& planner, const RootInputs& inputs, int32_t side) {
  Views views;
  std::vector<RootSide> sides;
  int64_t items = 0;
  for (const RootSideTensors& in : inputs.sides) {
    if (in.blocks == 0 || in.d == 0 || side_of(in.d, inputs) != side) continue;
    const int64_t due = (in.blocks + inputs.turns - 1) / inputs.turns;
    sides.push_back({items, in.blocks, due, in.d, in.k, views.add({in.factor}), views.add({in.root}),
                     in.statistics, in.root_statistics, in.active});
    items += due;
  }
  if (sides.empty()) return;
  const ResidentRoots parameters{planner.add(sides),
                                 planner.add(views.all()),
                                 static_cast<int32_t>(sides.size()),
                                 0,
                                 items,
                                 inputs.rule,
                                 inputs.turn,
                                 inputs.counter};
  if (side == kWideSide) {
    launch_wide<WideRoots>(planner, "root", inputs.gpu, parameters);
  } else {
    launch_resident(planner, "root", inputs.gpu, side, inputs.precision, kSymmetricMatrices, parameters);
  }
}

}  // namespace

int32_t longest_root_side(Precision precision, const Gpu& gpu) {
  int32_t longest = 0;
  for (const int32_t side : kKernelSides) {
    if (kernel_side(side, kSymmetricMatrices, precision, gpu) > 0) longest = side;
  }
  return longest;
}

Plan plan_roots(const RootInputs& inputs) {
  Planner planner;
  for (const int32_t side : kKernelSides) plan_side(planner, inputs, side);
  return planner.take();
}

}  // namespace kradagrad::cuda
