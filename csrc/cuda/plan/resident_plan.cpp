#include "resident_plan.h"

#include <algorithm>
#include <iterator>

#include "../kernels/square_root_resident.h"

namespace kradagrad::cuda {
namespace {

constexpr int32_t kTile = 16;  // tile.cuh
constexpr int32_t kSides[] = {64, 96, kResidentSide};

bool is_empty(const SquareRootGroupTensors& group) { return group.m == 0 || group.n == 0; }

// The smallest kernels that take a group.
int32_t kernel_side(const SquareRootGroupTensors& group) {
  const int32_t longest = is_empty(group) ? 0 : std::max(group.m, group.n);
  return *std::lower_bound(std::begin(kSides), std::end(kSides) - 1, longest);
}

// The launches of the kernels of one side.
class ResidentPlan {
 public:
  ResidentPlan(Planner& planner, const SquareRootInputs& inputs, int32_t side,
               const std::vector<PlacedGroup>& groups)
      : planner_(planner), inputs_(inputs), side_(side) {
    for (const PlacedGroup& group : groups) {
      if (group.in.blocks == 0 || kernel_side(group.in) != side) continue;
      if (inputs.update && !is_empty(group.in)) add_update(group);
      if (inputs.precondition) add_product(group);
    }
  }

  void plan() {
    if (updates_.empty() && products_.empty()) return;
    const View* const views = planner_.add(views_.all());
    if (!updates_.empty()) {
      const int32_t places = places_of(side_ / kTile, symmetric_matrices(inputs_.rule.refine));
      const ResidentUpdate update{
          planner_.add(updates_), views,         static_cast<int32_t>(updates_.size()), places, update_items_,
          inputs_.rule,           inputs_.scales};
      launch("resident_update_", update);
    }
    if (!products_.empty()) {
      const ResidentPrecondition precondition{planner_.add(products_),
                                              views,
                                              static_cast<int32_t>(products_.size()),
                                              places_of(side_ / kTile, 0),
                                              product_items_,
                                              inputs_.scales,
                                              inputs_.norms};
      launch("resident_precondition_", precondition);
    }
  }

 private:
  void add_update(const PlacedGroup& placed) {
    const SquareRootGroupTensors& in = placed.in;
    ResidentUpdateGroup group{};
    group.first_item = update_items_;
    group.first_block = placed.first_block;
    group.m = in.m;
    group.n = in.n;
    group.grad = views_.add(in.grad);
    for (const bool right : {false, true}) {
      const auto& tensors = right ? in.right : in.left;
      if (!tensors) continue;
      ResidentSide& side = group.side[group.sides++];
      side.right = right;
      side.factor = views_.add({tensors->factor});
      side.statistics = tensors->statistics;
      if (inputs_.rule.coupled) side.other_root = views_.add({right ? in.left_root : in.right_root});
    }
    update_items_ += in.blocks * group.sides;
    updates_.push_back(group);
  }

  void add_product(const PlacedGroup& placed) {
    const SquareRootGroupTensors& in = placed.in;
    products_.push_back({product_items_, placed.first_block, in.m, in.n, views_.add(in.direction),
                         views_.add({in.left_root}), views_.add({in.right_root}), views_.add(in.out),
                         in.left->statistics});
    product_items_ += in.blocks;
  }

  template <class Parameters>
  void launch(const std::string& kernel, const Parameters& parameters) {
    const int32_t tiles = side_ / kTile, teams = teams_of(tiles);
    planner_.launch(kernel + std::to_string(side_) + "_" + name_of(inputs_.precision),
                    (parameters.items + teams - 1) / teams, kResidentThreads,
                    resident_shared(tiles, parameters.places), parameters);
  }

  Planner& planner_;
  const SquareRootInputs& inputs_;
  int32_t side_;
  Views views_;
  std::vector<ResidentUpdateGroup> updates_;
  std::vector<ResidentProductGroup> products_;
  int64_t update_items_ = 0, product_items_ = 0;
};

}  // namespace

bool is_resident(const SquareRootGroupTensors& group, const SquareRootInputs& inputs) {
  if (!is_empty(group) && std::max(group.m, group.n) > kResidentSide) return false;
  const int32_t tiles = kernel_side(group) / kTile;
  const int32_t places = places_of(tiles, inputs.update ? symmetric_matrices(inputs.rule.refine) : 0);
  return resident_shared(tiles, places) + kStaticShared <= inputs.shared_limit;
}

void plan_resident(Planner& planner, const SquareRootInputs& inputs, const std::vector<PlacedGroup>& groups) {
  for (const int32_t side : kSides) ResidentPlan(planner, inputs, side, groups).plan();
}

}  // namespace kradagrad::cuda
