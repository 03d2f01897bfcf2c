#include "grouped_plan.h"

#include <algorithm>

namespace kradagrad::cuda {
namespace {

int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

constexpr int32_t kFloatBytes = sizeof(float);
constexpr int32_t kSmallSide = 256;  // below, CTA tiles of 64

}  // namespace

GroupedPlan::GroupedPlan(Planner& planner, const KronStepInputs& inputs, const std::vector<KronGroup>& groups,
                         Views& views, int64_t scratch_bytes)
    : planner_(planner), inputs_(inputs), rule_(inputs.rule), views_(views), scratch_bytes_(scratch_bytes) {
  for (const KronGroup& group : groups) {
    const bool large = std::max(group.m, group.n) >= kSmallSide;
    if (large && inputs.precision != Precision::kTf32x3) tile_ = 128;
  }
  for (const KronGroup& group : groups) states_.push_back(make_state(group));
}

bool GroupedPlan::traced() const {
  return rule_.scale == FactorScale::kTrace || rule_.scale == FactorScale::kTraceDim;
}

bool GroupedPlan::needs_gram() const {
  return rule_.refine > 0 || rule_.scale == FactorScale::kFrobenius || rule_.scale == FactorScale::kSchatten4;
}

int32_t GroupedPlan::tiles(int32_t rows, int32_t cols, bool symmetric) const {
  const int32_t tile_rows = ceil_div(rows, tile_), tile_cols = ceil_div(cols, tile_);
  return symmetric ? tile_rows * (tile_rows + 1) / 2 : tile_rows * tile_cols;
}

GroupedPlan::SideState GroupedPlan::make_side(const KronGroup& group, bool right) {
  SideState side{};
  side.right = right;
  side.d = right ? group.n : group.m;
  side.k = right ? group.m : group.n;
  side.chunk = chunk_columns(side.d, side.k, rule_.refine);
  side.chunks = ceil_div(side.k, side.chunk);
  side.factor = right ? group.right : group.left;
  side.statistics = right ? group.right_statistics : group.left_statistics;
  side.pending = planner_.floats((side.chunks + 1) * group.blocks);
  side.failed = planner_.floats(side.chunks * group.blocks);
  const int32_t most =
      std::max(tiles(side.d, std::max(side.d, side.chunk), false), tiles(side.chunk, side.chunk, true));
  side.bound = planner_.floats(most * group.blocks);
  return side;
}

GroupedPlan::GroupState GroupedPlan::make_state(const KronGroup& group) {
  GroupState state{group};
  if (inputs_.update) {
    for (const bool right : {false, true}) {
      if (right ? group.right_statistics : group.left_statistics)
        state.sides.push_back(make_side(group, right));
    }
    if (rule_.damping > 0) plan_energy(state);
  }
  if (inputs_.precondition) {
    state.norm_partials = tiles(group.m, group.n, false);
    state.norm = planner_.floats(state.norm_partials * group.blocks);
  }
  return state;
}

// |G|_F^2 must be known before X changes: from the first product of the side that takes all columns at once,
// which of two sides the longer one does, or from start_factors.
void GroupedPlan::plan_energy(GroupState& state) {
  SideState* side = &state.sides.front();
  for (SideState& other : state.sides) {
    if (other.chunks == 1) side = &other;
  }
  side->sums_energy = true;
  state.energy_partials = side->chunks == 1 ? tiles(side->d, side->k, false) : 1;
  state.energy = planner_.floats(state.energy_partials * state.group.blocks);
}

// How many square matrices a side works with: B and, from the first refinement on, V; W from the second; two
// more from the third, where W and C are made from one another's places.
int32_t GroupedPlan::squares_of(const SideState& side) const {
  constexpr int32_t kByRefine[] = {1, 2, 3, 5};
  if (rule_.refine > 0) return kByRefine[std::min(rule_.refine, 3)];
  if (rule_.scale == FactorScale::kSchatten4) return side.chunk > side.d ? 2 : 1;
  return rule_.scale == FactorScale::kFrobenius && side.chunk > side.d ? 1 : 0;
}

int64_t GroupedPlan::block_bytes(const GroupState& state) const {
  int64_t floats = inputs_.precondition ? int64_t{state.group.m} * state.group.n : 0;
  for (const SideState& side : state.sides) {
    const int64_t square = rule_.refine > 0 ? side.chunk : std::min(side.chunk, side.d);
    floats += int64_t{side.d} * side.chunk * (rule_.refine > 0 ? 2 : 1) + square * square * squares_of(side);
  }
  return floats * kFloatBytes;
}

std::vector<std::vector<GroupedPlan::Part>> GroupedPlan::slices() {
  std::vector<std::vector<Part>> slices(1);
  int64_t used = 0;
  for (GroupState& state : states_) {
    const int64_t each = std::max<int64_t>(block_bytes(state), 1);
    for (int64_t begin = 0; begin < state.group.blocks;) {
      if (used > 0 && used + each > scratch_bytes_) {
        slices.emplace_back();
        used = 0;
      }
      const int64_t fit = std::max<int64_t>((scratch_bytes_ - used) / each, 1);
      const int64_t end = std::min(state.group.blocks, begin + fit);
      slices.back().push_back({&state, begin, end});
      used += (end - begin) * each;
      begin = end;
    }
  }
  return slices;
}

void GroupedPlan::plan() {
  const int64_t mark = planner_.mark();
  for (const std::vector<Part>& slice : slices()) {
    plan_slice(slice);
    planner_.release(mark);
  }
  const View* const views = planner_.add(views_.all());
  launch_start(views);
  launch_steps(views);
  launch_finish();
}

void GroupedPlan::launch_start(const View* views) {
  std::vector<StartFactor> factors;
  int64_t ctas = 0;
  for (const GroupState& state : states_) {
    for (const SideState& side : state.sides) {
      factors.push_back({ctas, state.group.first_block, side.d, state.group.m, state.group.n, side.factor,
                         state.group.grad, side.statistics, side.pending, side.chunks, state.group.blocks,
                         side.sums_energy ? state.energy : nullptr, state.energy_partials});
      ctas += state.group.blocks;
    }
  }
  const StartFactors parameters{planner_.add(factors), views, static_cast<int32_t>(factors.size()), rule_,
                                inputs_.active};
  planner_.launch("start_factors", ctas, kStartThreads, 0, parameters);
}

void GroupedPlan::launch_steps(const View* views) {
  const Side* const sides = planner_.add(sides_);
  const std::string kernel = "grouped_product_" + std::to_string(tile_) + "_" + name_of(inputs_.precision);
  for (const Step& step : steps_) {
    const GroupedProduct products{planner_.add(step.products), sides, views,
                                  static_cast<int32_t>(step.products.size()), inputs_.active};
    planner_.launch(kernel, step.product_ctas, 2 * tile_,
                    kProductStages * tile_ * 2 * kProductDepth * kFloatBytes, products);
    const TracesOfSquares traces{planner_.add(step.traces), views, static_cast<int32_t>(step.traces.size()),
                                 inputs_.active};
    planner_.launch("traces_of_squares", step.trace_ctas, kStartThreads, 0, traces);
  }
}

void GroupedPlan::launch_finish() {
  std::vector<FinishGroup> groups;
  int64_t blocks = 0;
  for (const GroupState& state : states_) {
    FinishGroup group{};
    group.first_cta = blocks;
    group.first_block = state.group.first_block;
    group.blocks = state.group.blocks;
    group.sides = static_cast<int32_t>(state.sides.size());
    group.energy_partials = state.energy_partials;
    group.norm_partials = state.norm_partials;
    for (size_t i = 0; i < state.sides.size(); ++i) {
      const SideState& side = state.sides[i];
      group.side[i] = {side.d, side.chunks, side.statistics, side.pending, side.failed};
    }
    group.energy = state.energy;
    group.norm = state.norm;
    groups.push_back(group);
    blocks += state.group.blocks;
  }
  const FinishGroups parameters{planner_.add(groups), static_cast<int32_t>(groups.size()), rule_,
                                inputs_.active, inputs_.norms};
  planner_.launch("finish_groups", blocks, 32, 0, parameters);
}

}  // namespace kradagrad::cuda
