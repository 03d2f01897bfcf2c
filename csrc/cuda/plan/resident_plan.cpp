#include "resident_plan.h"

#include "resident_side.h"

namespace kradagrad::cuda {
namespace {

bool is_empty(const SquareRootGroupTensors& group) { return group.m == 0 || group.n == 0; }

int32_t kernel_side(const SquareRootGroupTensors& group) {
  return resident_side(is_empty(group) ? 0 : std::max(group.m, group.n));
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
    launch_resident(planner_, kernel, side_, inputs_.precision, parameters);
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
  const int32_t matrices = inputs.update ? symmetric_matrices(inputs.rule.refine) : 0;
  return fits_resident(kernel_side(group), matrices, inputs.shared_limit);
}

void plan_resident(Planner& planner, const SquareRootInputs& inputs, const std::vector<PlacedGroup>& groups) {
  for (const int32_t side : kResidentSides) ResidentPlan(planner, inputs, side, groups).plan();
}

}  // namespace kradagrad::cuda
