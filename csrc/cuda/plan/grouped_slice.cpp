// The products of one slice of blocks (grouped_plan.h), step by step.
#include <algorithm>

#include "grouped_plan.h"

namespace kradagrad::cuda {
namespace {

// Steps of one chunk, in the order of launches. Every refinement takes two: V, then W and C.
enum ChunkStep { kFactorStep, kGramStep, kSquareStep, kFirstRefinement };

}  // namespace

void GroupedPlan::Step::add(Product product, int64_t blocks) {
  product.first_cta = product_ctas;
  product_ctas += product.tiles * blocks;
  products.push_back(product);
}

void GroupedPlan::Step::add(TraceOfSquare trace, int64_t blocks) {
  trace.first_cta = trace_ctas;
  trace_ctas += blocks;
  traces.push_back(trace);
}

int32_t GroupedPlan::steps_of_chunk() const { return kFirstRefinement + 2 * rule_.refine + 2; }

bool GroupedPlan::wide(const Chunk& chunk) const {
  return rule_.refine == 0 && chunk.columns > chunk.work.side->d;
}

Matrices GroupedPlan::batch(const Part& part, float* data, int32_t rows, int32_t cols) {
  return views_.add(data, part.begin, rows, cols);
}

Product GroupedPlan::product(const Part& part, int32_t rows, int32_t cols, int32_t depth,
                             bool symmetric) const {
  Product product{};
  product.first_block = part.state->group.first_block;
  product.start = part.begin;
  product.side = -1;
  product.rows = rows;
  product.cols = cols;
  product.depth = depth;
  product.tile_cols = (cols + tile_ - 1) / tile_;
  product.tiles = tiles(rows, cols, symmetric);
  product.symmetric = symmetric;
  return product;
}

// A [d, columns], or A^T: what an operand of the left side is in the gradient's memory [m, n], the right
// side's is transposed.
Operand GroupedPlan::unfolding(const Chunk& chunk, bool transposed) const {
  const bool right = chunk.work.side->right;
  const Matrices& grad = chunk.work.part.state->group.grad;
  return {grad, right != transposed, right ? chunk.first : 0, right ? 0 : chunk.first};
}

// out = f(a b) for symmetric a and b that commute.
Product GroupedPlan::square(const Chunk& chunk, Epilogue epilogue, Matrices a, Matrices b, float* out) {
  const int32_t size = chunk.columns;
  Product result = product(chunk.work.part, size, size, size, true);
  result.side = chunk.side;
  result.epilogue = epilogue;
  result.a.of = a;
  result.b.of = b;
  if (out) result.out = batch(chunk.work.part, out, size, size);
  return result;
}

GroupedPlan::Work GroupedPlan::make_work(const Part& part, const SideState& side) {
  const int64_t blocks = part.end - part.begin;
  const int64_t square = rule_.refine > 0 ? side.chunk : std::min(side.chunk, side.d);
  Work work{part, &side, planner_.floats(blocks * side.d * side.chunk), nullptr, {}};
  if (rule_.refine > 0) work.yc = planner_.floats(blocks * side.d * side.chunk);
  for (int32_t i = 0; i < squares_of(side); ++i) {
    work.squares.push_back(planner_.floats(blocks * square * square));
  }
  return work;
}

int32_t GroupedPlan::bound_partials(const SideState& side, int32_t columns) const {
  const bool is_wide = rule_.refine == 0 && columns > side.d;
  switch (rule_.scale) {
    case FactorScale::kTrace:
    case FactorScale::kTraceDim:
      return tiles(side.d, columns, false);
    case FactorScale::kProduct:
      return tiles(side.d, side.d, false);
    default:
      return is_wide ? 1 : tiles(columns, columns, true);
  }
}

int32_t GroupedPlan::add_side(const Work& work, int32_t index) {
  const SideState& side = *work.side;
  const GroupState& state = *work.part.state;
  const int64_t blocks = state.group.blocks;
  const int32_t columns = std::min(side.chunk, side.k - index * side.chunk);
  sides_.push_back({rule_, side.d, bound_partials(side, columns), side.bound, side.pending + index * blocks,
                    side.pending + (index + 1) * blocks, side.failed + index * blocks, side.statistics,
                    state.energy, state.energy_partials});
  return static_cast<int32_t>(sides_.size()) - 1;
}

void GroupedPlan::plan_slice(const std::vector<Part>& slice) {
  const size_t first_step = steps_.size();
  std::vector<Work> works;
  int32_t chunks = 1;
  for (const Part& part : slice) {
    for (const SideState& side : part.state->sides) {
      works.push_back(make_work(part, side));
      chunks = std::max(chunks, side.chunks);
    }
  }
  steps_.resize(first_step + chunks * steps_of_chunk());
  const bool bound_step = rule_.scale == FactorScale::kProduct || needs_gram();
  const int32_t second_step = inputs_.update && bound_step ? kGramStep : steps_of_chunk() - 1;
  for (const Part& part : slice) {
    if (inputs_.precondition) plan_two_sided(part, steps_[first_step], steps_[first_step + second_step]);
  }
  for (const Work& work : works) {
    const SideState& side = *work.side;
    for (int32_t index = 0; index < side.chunks; ++index) {
      const int32_t first = index * side.chunk, columns = std::min(side.chunk, side.k - first);
      Step* const steps = &steps_[first_step + index * steps_of_chunk()];
      plan_chunk({work, first, columns, add_side(work, index), steps}, index);
    }
  }
}

// W^T = right_root D^T, then P = left_root W.
void GroupedPlan::plan_two_sided(const Part& part, Step& first, Step& second) {
  const KronGroup& group = part.state->group;
  const int64_t blocks = part.end - part.begin;
  const Matrices half = batch(part, planner_.floats(blocks * group.m * group.n), group.n, group.m);
  Product right = product(part, group.n, group.m, group.n, false);
  right.epilogue = Epilogue::kStore;
  right.a.of = group.right_root;
  right.b.of = group.direction;
  right.out = half;
  first.add(right, blocks);
  Product left = product(part, group.m, group.n, group.m, false);
  left.epilogue = Epilogue::kUpdate;
  left.a.of = group.left_root;
  left.b.of = half;
  left.out = group.out;
  left.partial = part.state->norm;
  second.add(left, blocks);
}

void GroupedPlan::plan_chunk(const Chunk& chunk, int32_t index) {
  const Work& work = chunk.work;
  const int32_t d = work.side->d;
  plan_factor(chunk, index);
  plan_bound(chunk);
  if (rule_.refine > 0) plan_refinement(chunk);
  const Matrices y = batch(work.part, work.y, d, chunk.columns);
  Product downdate = product(work.part, d, d, chunk.columns, true);
  downdate.side = chunk.side;
  downdate.epilogue = Epilogue::kDowndate;
  downdate.a.of = rule_.refine > 0 ? batch(work.part, work.yc, d, chunk.columns) : y;
  downdate.b.of = y;
  downdate.x.of = downdate.out = work.side->factor;
  chunk.steps[steps_of_chunk() - 1].add(downdate, work.part.end - work.part.begin);
}

// Y = x A, with the trace of A^T Y and |A|^2 where they are asked for.
void GroupedPlan::plan_factor(const Chunk& chunk, int32_t index) {
  const Work& work = chunk.work;
  const SideState& side = *work.side;
  const GroupState& state = *work.part.state;
  Product factor = product(work.part, side.d, chunk.columns, side.d, false);
  factor.side = chunk.side;
  factor.epilogue = Epilogue::kFactor;
  factor.a.of = side.factor;
  factor.b = unfolding(chunk, true);
  factor.x = unfolding(chunk, false);
  factor.out = batch(work.part, work.y, side.d, chunk.columns);
  factor.partial = traced() ? side.bound : nullptr;
  if (side.sums_energy && side.chunks == 1) {
    factor.energy = state.energy;
    factor.energy_partials = state.energy_partials;
  }
  chunk.steps[kFactorStep].add(factor, work.part.end - work.part.begin);
}

void GroupedPlan::plan_bound(const Chunk& chunk) {
  const Work& work = chunk.work;
  const SideState& side = *work.side;
  const int64_t blocks = work.part.end - work.part.begin;
  if (rule_.scale == FactorScale::kProduct) {  // |Y A^T|
    Product outer = product(work.part, side.d, side.d, chunk.columns, false);
    outer.side = chunk.side;
    outer.epilogue = Epilogue::kGram;
    outer.a.of = batch(work.part, work.y, side.d, chunk.columns);
    outer.b = unfolding(chunk, false);
    outer.partial = side.bound;
    chunk.steps[kGramStep].add(outer, blocks);
  }
  if (!needs_gram()) return;
  if (wide(chunk)) return plan_wide_bound(chunk);
  const bool schatten = rule_.scale == FactorScale::kSchatten4, stored = rule_.refine > 0 || schatten;
  Product gram = product(work.part, chunk.columns, chunk.columns, side.d, true);
  gram.side = chunk.side;
  gram.epilogue = Epilogue::kGram;
  gram.a = unfolding(chunk, true);
  gram.b = {batch(work.part, work.y, side.d, chunk.columns), 1, 0, 0};
  gram.partial = rule_.scale == FactorScale::kFrobenius ? side.bound : nullptr;
  if (stored) gram.out = batch(work.part, work.squares[0], chunk.columns, chunk.columns);
  chunk.steps[kGramStep].add(gram, blocks);
  if (schatten) {
    Product norm = square(chunk, Epilogue::kUpdate, gram.out, gram.out, nullptr);
    norm.partial = side.bound;
    chunk.steps[kSquareStep].add(norm, blocks);
  }
}

TraceOfSquare GroupedPlan::trace(const Chunk& chunk, Matrices matrix) const {
  const Part& part = chunk.work.part;
  return {0,
          part.state->group.first_block,
          part.begin,
          chunk.work.side->d,
          matrix,
          sides_[chunk.side].pending,
          chunk.work.side->bound};
}

// More columns than rows: weight X A A^T [d, d], not symmetric, has the eigenvalues of B that are not zero.
void GroupedPlan::plan_wide_bound(const Chunk& chunk) {
  const Work& work = chunk.work;
  const int32_t d = work.side->d;
  const int64_t blocks = work.part.end - work.part.begin;
  Product outer = product(work.part, d, d, chunk.columns, false);
  outer.side = chunk.side;
  outer.epilogue = Epilogue::kGram;
  outer.a.of = batch(work.part, work.y, d, chunk.columns);
  outer.b = unfolding(chunk, false);
  outer.out = batch(work.part, work.squares[0], d, d);
  chunk.steps[kGramStep].add(outer, blocks);
  if (rule_.scale == FactorScale::kFrobenius) {
    chunk.steps[kGramStep].add(trace(chunk, outer.out), blocks);
    return;
  }
  Product square = product(work.part, d, d, d, false);
  square.side = chunk.side;
  square.epilogue = Epilogue::kStore;
  square.a.of = outer.out;
  square.b = {outer.out, 1, 0, 0};
  square.out = batch(work.part, work.squares[1], d, d);
  chunk.steps[kSquareStep].add(square, blocks);
  chunk.steps[kSquareStep].add(trace(chunk, square.out), blocks);
}

// With W = s (I + B), C = I and s = 1 / t:  V = 5 I - 8 W + 4 W^2;  C <- C V;  W <- W V;  and then Y C. The
// matrices' places: 0 B, 1 C, 2 W, and as those of W and C are read while new ones are made, 3 and 4.
void GroupedPlan::plan_refinement(const Chunk& chunk) {
  const Work& work = chunk.work;
  const int64_t blocks = work.part.end - work.part.begin;
  const auto at = [&](int place) {
    return batch(work.part, work.squares[place], chunk.columns, chunk.columns);
  };
  int32_t v = 0, c = 1, w = 2, next_c = rule_.refine > 2 ? 3 : 2, next_w = 4;
  for (int32_t i = 0; i < rule_.refine; ++i) {
    Step& first = chunk.steps[kFirstRefinement + 2 * i];
    Step& second = chunk.steps[kFirstRefinement + 2 * i + 1];
    const bool last = i + 1 == rule_.refine;
    if (i == 0) {
      Product start = square(chunk, Epilogue::kStart, at(v), at(v), work.squares[c]);
      start.x.of = at(v);
      start.divide = 1;
      first.add(start, blocks);
      if (last) break;
      Product scaled = square(chunk, Epilogue::kScaled, at(v), at(c), work.squares[w]);
      scaled.x.of = at(c);
      scaled.divide = 1;
      second.add(scaled, blocks);
      continue;
    }
    Product polynomial = square(chunk, Epilogue::kPolynomial, at(w), at(w), work.squares[v]);
    polynomial.x.of = at(w);
    first.add(polynomial, blocks);
    second.add(square(chunk, Epilogue::kScaled, at(c), at(v), work.squares[next_c]), blocks);
    if (!last) second.add(square(chunk, Epilogue::kScaled, at(w), at(v), work.squares[next_w]), blocks);
    std::swap(c, next_c);
    std::swap(w, next_w);
  }
  Product yc = product(work.part, work.side->d, chunk.columns, chunk.columns, false);
  yc.side = chunk.side;
  yc.epilogue = Epilogue::kStore;
  yc.a.of = batch(work.part, work.y, work.side->d, chunk.columns);
  yc.b.of = at(c);
  yc.out = batch(work.part, work.yc, work.side->d, chunk.columns);
  chunk.steps[steps_of_chunk() - 2].add(yc, blocks);
}

}  // namespace kradagrad::cuda
