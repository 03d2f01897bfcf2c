#include "square_root_plan.h"

#include <algorithm>

#include "resident_plan.h"

namespace kradagrad::cuda {
namespace {

constexpr int32_t kFloatBytes = sizeof(float);
constexpr int32_t kMostSquares = 5;

int32_t ceil_div(int32_t a, int32_t b) { return (a + b - 1) / b; }

// Products that are launched together.
struct ProductStep {
  std::vector<SquareRootProduct> products;
  int64_t ctas = 0;

  void add(SquareRootProduct product, int64_t blocks) {
    product.first_cta = ctas;
    ctas += product.tiles * blocks;
    products.push_back(product);
  }
};

// One launch; its tables are added to the plan once all slices are planned.
struct Stage {
  std::string kernel;
  int64_t ctas;
  std::vector<SquareRootProduct> products;
  std::vector<SquareRootGroup> groups;
  std::vector<NormSum> sums;
};

// One group, with the views of all its blocks.
struct Group {
  const SquareRootGroupTensors& in;
  int64_t first_block;
  Matrices grad, direction, out, left_root, right_root;
  GradientNorm* gradient = nullptr;
};

// Blocks [begin, end) of a group, within one slice.
struct Part {
  const Group* group;
  int64_t begin, end;
  int64_t blocks() const { return end - begin; }
};

class SquareRootPlan {
 public:
  SquareRootPlan(Planner& planner, const SquareRootInputs& inputs, const std::vector<PlacedGroup>& groups,
                 int64_t scratch_bytes)
      : planner_(planner),
        inputs_(inputs),
        rule_(inputs.rule),
        scratch_bytes_(scratch_bytes),
        tile_(inputs.precision == Precision::kTf32x3 ? 64 : 128) {
    for (const PlacedGroup& group : groups) {
      groups_.push_back(make_group(group.in, group.first_block));
    }
  }

  void plan() {
    const int64_t mark = planner_.mark();
    for (const std::vector<Part>& slice : slices()) {
      plan_slice(slice);
      planner_.release(mark);
    }
    const View* const views = planner_.add(views_.all());
    const SquareRootSide* const sides = planner_.add(sides_);
    for (const Stage& stage : stages_) launch(stage, views, sides);
  }

 private:
  // One side of a part, and its scratch matrices.
  struct Work {
    Part part;
    bool right;
    int32_t d, k;
    SquareRootGroupSide entry;
    Matrices unfolding;  // U or G, from which B is made, as [m, n]
    Matrices b;          // [d, columns]
    int32_t columns;
    int32_t side = -1;  // index in sides_
    std::vector<Matrices> squares;
    float* sizes;
  };

  bool damps() const { return rule_.damped_updates > 0; }
  int32_t squares() const { return rule_.refine == 1 ? 1 : rule_.refine == 2 ? 3 : kMostSquares; }

  int32_t tiles(int32_t rows, int32_t cols, bool symmetric = false) const {
    const int32_t tile_rows = ceil_div(rows, tile_), tile_cols = ceil_div(cols, tile_);
    return symmetric ? tile_rows * (tile_rows + 1) / 2 : tile_rows * tile_cols;
  }

  Group make_group(const SquareRootGroupTensors& in, int64_t first_block) {
    Group group{in, first_block, {}, {}, {}, {}, {}};
    if (inputs_.update) {
      group.grad = views_.add(in.grad);
      group.gradient = reinterpret_cast<GradientNorm*>(planner_.floats(2 * in.blocks));
    }
    if (inputs_.precondition) {
      group.direction = views_.add(in.direction);
      group.out = views_.add(in.out);
    }
    if (inputs_.precondition || (inputs_.update && rule_.coupled)) {
      group.left_root = views_.add({in.left_root});
      group.right_root = views_.add({in.right_root});
    }
    return group;
  }

  static bool is_empty(const Group& group) { return group.in.m == 0 || group.in.n == 0; }

  // Bytes of a block's scratch matrices.
  int64_t block_bytes(const Group& group) const {
    const int64_t m = group.in.m, n = group.in.n;
    int64_t floats = inputs_.precondition ? m * n : 0;
    if (!inputs_.update) return floats * kFloatBytes;
    if (rule_.coupled) floats += 2 * m * n;
    const auto side = [&](int64_t d, int64_t k) {
      return d * (k + (damps() ? d : 0)) + (squares() + 1) * d * d;
    };
    if (group.in.left) floats += side(m, n);
    if (group.in.right) floats += side(n, m);
    return floats * kFloatBytes;
  }

  std::vector<std::vector<Part>> slices() const {
    std::vector<std::vector<Part>> slices(1);
    int64_t used = 0;
    for (const Group& group : groups_) {
      const int64_t each = std::max<int64_t>(block_bytes(group), 1);
      for (int64_t begin = 0; begin < group.in.blocks;) {
        if (used > 0 && used + each > scratch_bytes_) {
          slices.emplace_back();
          used = 0;
        }
        const int64_t fit = std::max<int64_t>((scratch_bytes_ - used) / each, 1);
        const int64_t end = std::min(group.in.blocks, begin + fit);
        slices.back().push_back({&group, begin, end});
        used += (end - begin) * each;
        begin = end;
      }
    }
    return slices;
  }

  Matrices batch(const Part& part, int32_t rows, int32_t cols, int64_t row_length = 0) {
    const int64_t length = row_length ? row_length : cols;
    return views_.add(planner_.floats(part.blocks() * rows * length), part.begin, rows, length);
  }

  SquareRootProduct product(const Part& part, int32_t rows, int32_t cols, int32_t depth,
                            SquareRootEpilogue epilogue, bool symmetric = false) const {
    SquareRootProduct product{};
    product.first_block = part.group->first_block;
    product.start = part.begin;
    product.side = -1;
    product.rows = rows;
    product.cols = cols;
    product.depth = depth;
    product.tile_cols = ceil_div(cols, tile_);
    product.tiles = tiles(rows, cols, symmetric);
    product.symmetric = symmetric;
    product.epilogue = epilogue;
    return product;
  }

  float* partials(const Part& part, int32_t count) { return planner_.floats(part.group->in.blocks * count); }

  void plan_slice(const std::vector<Part>& slice) {
    ProductStep first, last;
    std::vector<Work> works;
    std::vector<NormSum> sums;
    int64_t norm_ctas = 0;
    for (const Part& part : slice) {
      if (inputs_.precondition) plan_two_sided(part, first, last, sums, norm_ctas);
      if (inputs_.update && !is_empty(*part.group)) plan_sides(part, first, works);
    }
    const std::vector<SquareRootGroup> groups = groups_of(slice, works);
    add_groups("gradient_norms", groups);
    add_products(first);
    add_groups("start_sides", groups);
    if (!works.empty()) plan_updates(works);
    add_groups("finish_sides", groups);
    add_products(last);
    stages_.push_back({"finish_norms", norm_ctas, {}, {}, sums});
  }

  // Plans D P_r, then V = P_l (D P_r) / rms.
  void plan_two_sided(const Part& part, ProductStep& first, ProductStep& last, std::vector<NormSum>& sums,
                      int64_t& norm_ctas) {
    const Group& group = *part.group;
    const int32_t m = group.in.m, n = group.in.n, count = tiles(m, n);
    sums.push_back({norm_ctas, group.first_block, part.begin, nullptr, count});
    norm_ctas += part.blocks();
    if (is_empty(group)) return;
    SquareRootProduct half = product(part, m, n, n, SquareRootEpilogue::kStore);
    half.a.of = group.direction;
    half.b = {group.right_root, 1};
    half.out = batch(part, m, n);
    first.add(half, part.blocks());
    SquareRootProduct whole = product(part, m, n, m, SquareRootEpilogue::kOut);
    whole.a.of = group.left_root;
    whole.b = {half.out, 1};
    whole.out = group.out;
    whole.rms = group.in.left->statistics;
    whole.partial = partials(part, count);
    sums.back().partials = whole.partial;
    last.add(whole, part.blocks());
  }

  // Plans both sides' scratch memory and, for a coupled update, G P_r and P_l G.
  void plan_sides(const Part& part, ProductStep& first, std::vector<Work>& works) {
    const Group& group = *part.group;
    const int32_t m = group.in.m, n = group.in.n;
    for (const bool right : {false, true}) {
      const auto& tensors = right ? group.in.right : group.in.left;
      if (!tensors) continue;
      Work work{part, right, right ? n : m, right ? m : n, {}, group.grad, {}, 0, -1, {}, nullptr};
      work.entry.d = work.d;
      work.entry.k = work.k;
      work.entry.factor = views_.add({tensors->factor});
      work.entry.statistics = tensors->statistics;
      static_assert(sizeof(BlockUpdate) == 5 * kFloatBytes);
      work.entry.updates = reinterpret_cast<BlockUpdate*>(partials(part, 5));
      if (rule_.coupled) {
        SquareRootProduct coupled = product(part, m, n, right ? m : n, SquareRootEpilogue::kCoupled);
        coupled.a.of = right ? group.left_root : group.grad;
        coupled.b = {right ? group.grad : group.right_root, 1};
        coupled.out = work.unfolding = batch(part, m, n);
        coupled.gradient = group.gradient;
        coupled.partial = partials(part, coupled.tiles);
        work.entry.coupled = coupled.partial;
        work.entry.coupled_partials = coupled.tiles;
        first.add(coupled, part.blocks());
      }
      work.columns = work.k + (damps() ? work.d : 0);
      float* const b = planner_.floats(part.blocks() * work.d * work.columns);
      work.b = views_.add(b, part.begin, work.d, work.columns);
      // C^T is in the same rows, after the columns of B.
      if (damps()) work.entry.damping = views_.columns(work.b, work.k);
      for (int32_t i = 0; i < squares(); ++i) work.squares.push_back(batch(part, work.d, work.d));
      work.sizes = partials(part, tiles(work.d, work.d, true));
      work.entry.updated = batch(part, work.d, work.d);
      work.entry.failed_partials = tiles(work.d, work.d);
      work.entry.failed = partials(part, work.entry.failed_partials);
      work.entry.whitened_partials = tiles(work.d, work.k);
      work.entry.whitened = partials(part, work.entry.whitened_partials);
      works.push_back(std::move(work));
    }
  }

  std::vector<SquareRootGroup> groups_of(const std::vector<Part>& slice,
                                         const std::vector<Work>& works) const {
    std::vector<SquareRootGroup> groups;
    int64_t ctas = 0;
    for (const Part& part : slice) {
      SquareRootGroup entry{};
      entry.first_cta = ctas;
      entry.first_block = part.group->first_block;
      entry.start = part.begin;
      entry.blocks = part.blocks();
      entry.m = part.group->in.m;
      entry.n = part.group->in.n;
      entry.grad = part.group->grad;
      entry.gradient = part.group->gradient;
      for (const Work& work : works) {
        if (work.part.group == part.group && work.part.begin == part.begin) {
          entry.side[entry.sides++] = work.entry;
        }
      }
      if (entry.sides == 0) continue;
      ctas += entry.blocks;
      groups.push_back(entry);
    }
    return groups;
  }

  // Plans B, M, the iteration for R, and F R.
  void plan_updates(std::vector<Work>& works) {
    std::vector<ProductStep> steps(rule_.refine == 1 ? 3 : 2 * rule_.refine + 2);
    for (Work& work : works) {
      work.side = static_cast<int32_t>(sides_.size());
      sides_.push_back({rule_, work.d, work.k, work.entry.updates, work.entry.statistics, work.sizes,
                        tiles(work.d, work.d, true)});
      plan_whitening(work, steps[0], steps[1]);
      plan_iteration(work, steps);
    }
    for (const ProductStep& step : steps) add_products(step);
  }

  void plan_whitening(const Work& work, ProductStep& first, ProductStep& second) {
    SquareRootProduct b = product(work.part, work.d, work.k, work.d, SquareRootEpilogue::kWhiten);
    b.side = work.side;
    b.a = {work.entry.factor, 1};
    b.b = {work.unfolding, work.right ? 0 : 1};
    b.out = work.b;
    b.partial = const_cast<float*>(work.entry.whitened);
    first.add(b, work.part.blocks());
    SquareRootProduct gram =
        product(work.part, work.d, work.d, work.columns, SquareRootEpilogue::kGram, true);
    gram.side = work.side;
    gram.a.of = gram.b.of = work.b;
    gram.out = work.squares[0];
    gram.partial = work.sizes;
    second.add(gram, work.part.blocks());
  }

  SquareRootProduct square(const Work& work, Combination combination, int32_t step, Matrices a, Matrices b,
                           Matrices x, Matrices out) const {
    SquareRootProduct result = product(work.part, work.d, work.d, work.d, SquareRootEpilogue::kCombine, true);
    result.side = work.side;
    result.combination = combination;
    result.step = step;
    result.a.of = a;
    result.b.of = b;
    result.x.of = x;
    result.out = out;
    return result;
  }

  // The places of the squares are 0 M, 1 Y, 2 T, 3 Z; with two steps Z takes the place of Y, which is free
  // by then. The third step and all later ones make the new Y in the place that is neither that of Y, T or Z
  // nor that of the old Z, at first M, which the same launch reads to make Z. Then the new T takes the place
  // of the old Y, and the new Z that of the old T.
  void plan_iteration(const Work& work, std::vector<ProductStep>& steps) {
    const int64_t blocks = work.part.blocks();
    const std::vector<Matrices>& at = work.squares;
    int32_t m = 0, y = 1, t = 2, z = rule_.refine == 1 ? 0 : rule_.refine == 2 ? 1 : 3;
    if (rule_.refine >= 2) {
      steps[2].add(square(work, Combination::kFirstY, 0, at[m], at[m], at[m], at[y]), blocks);
      steps[3].add(square(work, Combination::kSecondT, 1, at[m], at[y], at[y], at[t]), blocks);
      steps[4].add(square(work, Combination::kSecondZ, 1, at[t], at[m], at[t], at[z]), blocks);
    }
    int32_t old_z = m;
    for (int32_t step = 2; step < rule_.refine; ++step) {
      const int32_t new_y = 10 - y - t - z - old_z, new_t = y, new_z = t;
      steps[2 * step].add(square(work, Combination::kProduct, step, at[y], at[t], {}, at[new_y]), blocks);
      steps[2 * step + 1].add(square(work, Combination::kPolynomial, step, at[z], at[new_y], {}, at[new_t]),
                              blocks);
      steps[2 * step + 2].add(square(work, Combination::kProduct, step, at[new_t], at[z], {}, at[new_z]),
                              blocks);
      old_z = z;
      y = new_y, t = new_t, z = new_z;
    }
    SquareRootProduct factor = product(work.part, work.d, work.d, work.d, SquareRootEpilogue::kFactor);
    factor.side = work.side;
    factor.combination = rule_.refine == 1 ? Combination::kOneStep : Combination::kRestored;
    factor.a.of = factor.x.of = work.entry.factor;
    factor.b.of = at[z];
    factor.out = work.entry.updated;
    factor.partial = const_cast<float*>(work.entry.failed);
    steps.back().add(factor, blocks);
  }

  void add_products(const ProductStep& step) {
    const std::string kernel =
        "square_root_product_" + std::to_string(tile_) + "_" + name_of(inputs_.precision);
    stages_.push_back({kernel, step.ctas, step.products, {}, {}});
  }

  void add_groups(const std::string& kernel, const std::vector<SquareRootGroup>& groups) {
    int64_t ctas = 0;
    for (const SquareRootGroup& group : groups) ctas += group.blocks;
    stages_.push_back({kernel, ctas, {}, groups, {}});
  }

  void launch(const Stage& stage, const View* views, const SquareRootSide* sides) {
    if (!stage.products.empty()) {
      const SquareRootProducts products{planner_.add(stage.products), sides, views,
                                        static_cast<int32_t>(stage.products.size()), inputs_.scales};
      const int32_t shared = kProductStages * tile_ * 2 * kProductDepth * kFloatBytes;
      planner_.launch(stage.kernel, stage.ctas, 2 * tile_, shared, products);
    } else if (!stage.groups.empty()) {
      const SquareRootGroups groups{planner_.add(stage.groups), views,
                                    static_cast<int32_t>(stage.groups.size()), rule_, inputs_.scales};
      planner_.launch(stage.kernel, stage.ctas, kBlockThreads, 0, groups);
    } else if (!stage.sums.empty()) {
      const NormSums sums{planner_.add(stage.sums), static_cast<int32_t>(stage.sums.size()), inputs_.scales,
                          inputs_.norms};
      planner_.launch(stage.kernel, stage.ctas, 32, 0, sums);
    }
  }

  Planner& planner_;
  const SquareRootInputs& inputs_;
  const SquareRootRule& rule_;
  int64_t scratch_bytes_;
  const int32_t tile_;  // side of a CTA's tile
  Views views_;
  std::vector<Group> groups_;
  std::vector<SquareRootSide> sides_;
  std::vector<Stage> stages_;
};

}  // namespace

Plan plan_square_root_step(const SquareRootInputs& inputs, int64_t scratch_bytes) {
  Planner planner;
  std::vector<PlacedGroup> resident, grouped;
  int64_t first_block = 0;
  for (const SquareRootGroupTensors& group : inputs.groups) {
    (is_taken_whole(group, inputs) ? resident : grouped).push_back({group, first_block});
    first_block += group.blocks;
  }
  if (!resident.empty()) plan_resident(planner, inputs, resident);
  if (!grouped.empty()) SquareRootPlan(planner, inputs, grouped, scratch_bytes).plan();
  return planner.take();
}

}  // namespace kradagrad::cuda
