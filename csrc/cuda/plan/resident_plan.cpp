#include "resident_plan.h"

#include "block_kernel.h"

namespace kradagrad::cuda {
namespace {

bool is_empty(const SquareRootGroupTensors& group) { return group.m == 0 || group.n == 0; }

int32_t side_of(const SquareRootGroupTensors& group, const SquareRootInputs& inputs) {
  const int32_t matrices = inputs.update ? symmetric_matrices(inputs.rule.refine) : kProductRoots;
  return kernel_side(is_empty(group) ? 0 : std::max(group.m, group.n), matrices, inputs.precision,
                     inputs.gpu);
}

// The launches of the kernels of one side.
class ResidentPlan {
 public:
  ResidentPlan(Planner& planner, const SquareRootInputs& inputs, int32_t side,
               const std::vector<PlacedGroup>& groups)
      : planner_(planner), inputs_(inputs), side_(side) {
    for (const PlacedGroup& group : groups) {
      if (group.in.blocks == 0 || side_of(group.in, inputs) != side) continue;
      if (inputs.update && !is_empty(group.in)) add_update(group);
      if (inputs.precondition) add_product(group);
    }
  }

  void plan() {
    if (updates_.empty() && products_.empty()) return;
    const View* const views = planner_.add(views_.all());
    if (!updates_.empty()) {
      const auto count = static_cast<int32_t>(updates_.size());
      launch<WideUpdate>("update", symmetric_matrices(inputs_.rule.refine), uneven_,
                         ResidentUpdate{planner_.add(updates_), views, count, 0, update_items_, inputs_.rule,
                                        inputs_.scales});
    }
    if (!products_.empty()) {
      const auto count = static_cast<int32_t>(products_.size());
      launch<WidePrecondition>("precondition", kProductRoots, false,
                               ResidentPrecondition{planner_.add(products_), views, count, 0, product_items_,
                                                    inputs_.scales, inputs_.norms});
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
    uneven_ = uneven_ || (group.sides == 2 && in.m != in.n);
    updates_.push_back(group);
  }

  void add_product(const PlacedGroup& placed) {
    const SquareRootGroupTensors& in = placed.in;
    products_.push_back({product_items_, placed.first_block, in.m, in.n, views_.add(in.direction),
                         views_.add({in.left_root}), views_.add({in.right_root}), views_.add(in.out),
                         in.left->statistics});
    product_items_ += in.blocks;
  }

  template <class WideParameters, class Parameters>
  void launch(const std::string& op, int32_t symmetric_matrices, bool alternate,
              const Parameters& parameters) {
    if (side_ == kWideSide) {
      launch_wide(planner_, op, inputs_.gpu, parameters.items, kWideTiles, alternate,
                  [&](char* scratch) { return WideParameters{parameters, scratch}; });
    } else {
      launch_resident(planner_, op, inputs_.gpu, side_, inputs_.precision, symmetric_matrices, alternate,
                      parameters);
    }
  }

  Planner& planner_;
  const SquareRootInputs& inputs_;
  int32_t side_;
  Views views_;
  std::vector<ResidentUpdateGroup> updates_;
  std::vector<ResidentProductGroup> products_;
  int64_t update_items_ = 0, product_items_ = 0;
  bool uneven_ = false;  // true if the two sides of some block differ
};

}  // namespace

bool is_taken_whole(const SquareRootGroupTensors& group, const SquareRootInputs& inputs) {
  return side_of(group, inputs) > 0;
}

void plan_resident(Planner& planner, const SquareRootInputs& inputs, const std::vector<PlacedGroup>& groups) {
  for (const int32_t side : kKernelSides) ResidentPlan(planner, inputs, side, groups).plan();
}

}  // namespace kradagrad::cuda
