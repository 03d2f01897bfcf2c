// The launches of the kron step for blocks of any size: factor updates and two-sided products as a list of
// batched products, each launch with those of every group and side that come at the same point of it.
//
//   start_factors
//   slice by slice, and within a slice for every chunk of the unfoldings' columns (base.py):
//     Y = x A   (and the first half of the two-sided product)
//     B = N - I = weight A^T Y, or another matrix that the bound asks for   (and the second half)
//     refine > 0:   V = 5 I - 8 W + 4 W^2;   W <- W V, C <- C V;   ...   Y C
//     X <- x - weight / t (Y C) Y^T
//   finish_groups
#pragma once

#include <string>
#include <vector>

#include "../kernels/factor_state.h"
#include "../kernels/grouped_product.h"
#include "kron_step_plan.h"

namespace kradagrad::cuda {

class GroupedPlan {
 public:
  GroupedPlan(Planner& planner, const KronStepInputs& inputs, const std::vector<KronGroup>& groups,
              Views& views, int64_t scratch_bytes);
  void plan();

 private:
  // One side of a group, for all of its blocks.
  struct SideState {
    bool right;
    int32_t d, k, chunk, chunks;
    Matrices factor;
    float* statistics;
    float* pending;    // [chunks + 1, blocks]
    float* failed;     // [chunks, blocks]
    float* bound;      // [blocks, most bound partials]
    bool sums_energy;  // |G|_F^2 of the group
  };

  struct GroupState {
    KronGroup group;
    std::vector<SideState> sides;
    float* energy = nullptr;
    int32_t energy_partials = 0;
    float* norm = nullptr;
    int32_t norm_partials = 0;
  };

  // Blocks [begin, end) of a group, within one slice.
  struct Part {
    GroupState* state;
    int64_t begin, end;
  };

  // One side of a part and the scratch memory it works in: matrices of every block, one after the other.
  struct Work {
    Part part;
    const SideState* side;
    float* y;
    float* yc;
    std::vector<float*> squares;  // [columns, columns], or [d, d] for a wide bound
  };

  // What one launch of grouped products, and then one of traces, does.
  struct Step {
    std::vector<Product> products;
    std::vector<TraceOfSquare> traces;
    int64_t product_ctas = 0, trace_ctas = 0;
    void add(Product product, int64_t blocks);
    void add(TraceOfSquare trace, int64_t blocks);
  };

  // The chunk of a side that is planned, and the steps of its slice from the chunk's first on.
  struct Chunk {
    const Work& work;
    int32_t first, columns;  // of the unfolding
    int32_t side;            // index in sides_
    Step* steps;
  };

  GroupState make_state(const KronGroup& group);
  SideState make_side(const KronGroup& group, bool right);
  void plan_energy(GroupState& state);
  int32_t squares_of(const SideState& side) const;
  int64_t block_bytes(const GroupState& state) const;
  std::vector<std::vector<Part>> slices();
  Work make_work(const Part& part, const SideState& side);
  int32_t add_side(const Work& work, int32_t index);
  int32_t bound_partials(const SideState& side, int32_t columns) const;
  int32_t steps_of_chunk() const;

  void plan_slice(const std::vector<Part>& slice);
  void plan_two_sided(const Part& part, Step& first, Step& second);
  void plan_chunk(const Chunk& chunk, int32_t index);
  void plan_factor(const Chunk& chunk, int32_t index);
  void plan_bound(const Chunk& chunk);
  void plan_wide_bound(const Chunk& chunk);
  void plan_refinement(const Chunk& chunk);

  bool needs_gram() const;
  bool traced() const;
  bool wide(const Chunk& chunk) const;
  int32_t tiles(int32_t rows, int32_t cols, bool symmetric) const;
  Operand unfolding(const Chunk& chunk, bool transposed) const;
  Matrices batch(const Part& part, float* data, int32_t rows, int32_t cols);
  Product product(const Part& part, int32_t rows, int32_t cols, int32_t depth, bool symmetric) const;
  Product square(const Chunk& chunk, Epilogue epilogue, Matrices a, Matrices b, float* out);
  TraceOfSquare trace(const Chunk& chunk, Matrices matrix) const;

  void launch_start(const View* views);
  void launch_steps(const View* views);
  void launch_finish();

  Planner& planner_;
  const KronStepInputs& inputs_;
  const FactorRule& rule_;
  Views& views_;
  int64_t scratch_bytes_;
  int32_t tile_ = 64;  // side of a CTA's tile
  std::vector<GroupState> states_;
  std::vector<Side> sides_;
  std::vector<Step> steps_;
};

}  // namespace kradagrad::cuda
