#include "resident_plan.h"

#include <algorithm>

#include "../kernels/square_root_resident.h"

namespace kradagrad::cuda {
namespace {

constexpr int32_t kSmallSide = 64;
constexpr int32_t kTile = 16;  // tile.cuh

bool is_empty(const SquareRootGroupTensors& group) { return group.m == 0 || group.n == 0; }

// The side of the kernels that take all of the groups.
int32_t kernel_side(const std::vector<PlacedGroup>& groups) {
  int32_t side = 0;
  for (const PlacedGroup& group : groups) {
    if (!is_empty(group.in)) side = std::max({side, group.in.m, group.in.n});
  }
  return side <= kSmallSide ? kSmallSide : kResidentSide;
}

class ResidentPlan {
 public:
  ResidentPlan(Planner& planner, const SquareRootInputs& inputs, const std::vector<PlacedGroup>& groups)
      : planner_(planner), inputs_(inputs), side_(kernel_side(groups)) {
    for (const PlacedGroup& group : groups) {
      if (group.in.blocks == 0) continue;
      if (inputs.update && !is_empty(group.in)) add_update(group);
      if (inputs.precondition) add_product(group);
    }
  }

  void plan() {
    const View* const views = planner_.add(views_.all());
    if (!updates_.empty()) {
      const ResidentUpdate update{planner_.add(updates_), views, static_cast<int32_t>(updates_.size()),
                                  inputs_.rule, inputs_.scales};
      launch("resident_update_", update_ctas_, update);
    }
    if (!products_.empty()) {
      const ResidentPrecondition precondition{planner_.add(products_), views,
                                              static_cast<int32_t>(products_.size()), inputs_.scales,
                                              inputs_.norms};
      launch("resident_precondition_", product_ctas_, precondition);
    }
  }

 private:
  void add_update(const PlacedGroup& placed) {
    const SquareRootGroupTensors& in = placed.in;
    ResidentUpdateGroup group{};
    group.first_cta = update_ctas_;
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
    update_ctas_ += in.blocks * group.sides;
    updates_.push_back(group);
  }

  void add_product(const PlacedGroup& placed) {
    const SquareRootGroupTensors& in = placed.in;
    products_.push_back({product_ctas_, placed.first_block, in.m, in.n, views_.add(in.direction),
                         views_.add({in.left_root}), views_.add({in.right_root}), views_.add(in.out),
                         in.left->statistics});
    product_ctas_ += in.blocks;
  }

  template <class Parameters>
  void launch(const std::string& kernel, int64_t ctas, const Parameters& parameters) {
    const std::string name = kernel + std::to_string(side_) + "_" + name_of(inputs_.precision);
    planner_.launch(name, ctas, 2 * side_, resident_shared(side_ / kTile), parameters);
  }

  Planner& planner_;
  const SquareRootInputs& inputs_;
  int32_t side_;
  Views views_;
  std::vector<ResidentUpdateGroup> updates_;
  std::vector<ResidentProductGroup> products_;
  int64_t update_ctas_ = 0, product_ctas_ = 0;
};

}  // namespace

bool is_resident(const SquareRootGroupTensors& group, int32_t shared_limit) {
  const auto fits = [&](int32_t side) { return resident_shared(side / kTile) <= shared_limit; };
  const int32_t side = fits(kResidentSide) ? kResidentSide : fits(kSmallSide) ? kSmallSide : 0;
  return side > 0 && (is_empty(group) || std::max(group.m, group.n) <= side);
}

void plan_resident(Planner& planner, const SquareRootInputs& inputs, const std::vector<PlacedGroup>& groups) {
  ResidentPlan(planner, inputs, groups).plan();
}

}  // namespace kradagrad::cuda
