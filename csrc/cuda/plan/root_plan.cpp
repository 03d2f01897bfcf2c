#include "root_plan.h"

#include "resident_side.h"

namespace kradagrad::cuda {
namespace {

constexpr int32_t kSymmetricMatrices = 2;  // G, and the polynomial of it

void plan_side(Planner& planner, const RootInputs& inputs, int32_t kernel_side) {
  Views views;
  std::vector<RootSide> sides;
  int64_t items = 0;
  for (const RootSideTensors& in : inputs.sides) {
    if (in.blocks == 0 || in.d == 0 || resident_side(in.d) != kernel_side) continue;
    const int64_t due = (in.blocks + inputs.turns - 1) / inputs.turns;
    sides.push_back({items, in.blocks, due, in.d, in.k, views.add({in.factor}), views.add({in.root}),
                     in.statistics, in.root_statistics, in.active});
    items += due;
  }
  if (sides.empty()) return;
  const int32_t tiles = kernel_side / kTile, places = places_of(tiles, kSymmetricMatrices);
  const ResidentRoots parameters{planner.add(sides),
                                 planner.add(views.all()),
                                 static_cast<int32_t>(sides.size()),
                                 places,
                                 items,
                                 inputs.rule,
                                 inputs.turn,
                                 inputs.counter};
  launch_resident(planner, "resident_root_", kernel_side, inputs.precision, parameters);
}

}  // namespace

bool has_resident_root(int32_t d, int32_t shared_limit) {
  return d <= kResidentSide && fits_resident(resident_side(d), kSymmetricMatrices, shared_limit);
}

Plan plan_roots(const RootInputs& inputs) {
  Planner planner;
  for (const int32_t side : kResidentSides) plan_side(planner, inputs, side);
  return planner.take();
}

}  // namespace kradagrad::cuda
