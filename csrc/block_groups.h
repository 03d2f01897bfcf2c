// The arguments of the ops on factors, checked and split into groups of N_i blocks [m_i, n_i] each.
// The lists of block views contain the blocks of all groups, group by group, and so do `norms` and `scales`.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "checks.h"
#include "rule.h"

namespace kradagrad {

// Tensors of all groups: one per group, or lists of block views.
struct GroupArguments {
  Tensors left, right, left_statistics, right_statistics;
  Tensors out;
  Tensor norms;
  Tensors grad, direction;
  Tensors left_root, right_root;
  Tensor scales;
  bool update, precondition;
};

// One side of a group: F [N, d, d], statistics [N, 4], P [N, d, d].
struct Side {
  Tensor factor, statistics, root;
};

struct BlockGroup {
  int64_t first_block, blocks, m, n;
  Side left, right;
  Tensors out, grad, direction;
};

inline Method method_named(const Checks& checks, const std::string& name) {
  if (name == "cholesky") return Method::kCholesky;
  if (name == "products") return Method::kProducts;
  checks.fail("method", "cholesky or products", name);
}

inline Precision precision_named(const Checks& checks, const std::string& name) {
  if (name == "bf16x3") return Precision::kBf16x3;
  if (name == "tf32x3") return Precision::kTf32x3;
  if (name == "fp32") return Precision::kFp32;
  checks.fail("precision", "bf16x3, tf32x3 or fp32", name);
}

inline FactorRule factor_rule(const Checks& checks, double decay, double weight, double damping, double prior,
                              double damped_updates, const std::string& method, int64_t refine,
                              const std::string& precision, bool coupled) {
  checks.scalar("decay", decay > 0 && decay <= 1, "in (0, 1]", decay);
  checks.positive("weight", weight);
  checks.positive("damping", damping);
  checks.positive("prior", prior);
  checks.not_negative("damped_updates", damped_updates);
  checks.scalar("refine", refine >= 1 && refine <= 6, "1 to 6", refine);
  return {decay,          weight,
          damping,        prior,
          damped_updates, method_named(checks, method),
          refine,         precision_named(checks, precision),
          coupled};
}

// Checks a side's factors and statistics; `side` is the letter of their size in error messages.
inline void check_side(const Checks& checks, const std::string& factor_name, const Tensor& factor,
                       const std::string& statistics_name, const Tensor& statistics, const Dim& count,
                       const char* side, ScalarType dtype) {
  checks.contiguous(factor_name, factor, {count, side, side}, {dtype, ScalarType::BFloat16});
  checks.contiguous(statistics_name, statistics, {factor.size(0), kStatistics}, {dtype});
}

// Distributes the views of a list to consecutive groups; views without blocks are skipped.
class GroupViews {
 public:
  GroupViews(const Checks& checks, std::string name, const Tensors& views, DTypes dtypes)
      : checks_(checks), name_(std::move(name)), views_(views), dtypes_(std::move(dtypes)) {}

  Tensors take(const BlockGroup& group, size_t index) {
    Tensors views;
    int64_t blocks = 0;
    for (; blocks < group.blocks && next_ < views_.size(); ++next_) {
      if (Checks::block_count(views_[next_]) == 0) continue;
      const std::string name = Checks::item(name_, next_);
      checks_.block_view(name, views_[next_], group.m, group.n, dtypes_);
      blocks += Checks::block_count(views_[next_]);
      views.push_back(views_[next_]);
    }
    if (blocks != group.blocks) {
      checks_.fail(name_,
                   "views of " + std::to_string(group.blocks) + " blocks for group " + std::to_string(index),
                   std::to_string(blocks) + " blocks");
    }
    return views;
  }

  void finish() const {
    for (size_t i = next_; i < views_.size(); ++i) {
      if (Checks::block_count(views_[i]) == 0) continue;
      checks_.fail(name_, "views of the groups' blocks", std::to_string(views_.size() - i) + " more");
    }
  }

 private:
  const Checks& checks_;
  std::string name_;
  const Tensors& views_;
  DTypes dtypes_;
  size_t next_ = 0;
};

inline BlockGroup checked_sides(const Checks& checks, const GroupArguments& in, size_t i, ScalarType dtype,
                                bool with_roots) {
  const auto named = [&](const char* name) { return Checks::item(name, i); };
  check_side(checks, named("left"), in.left[i], named("left_statistics"), in.left_statistics[i], "N", "m",
             dtype);
  const int64_t count = in.left[i].size(0), m = in.left[i].size(1);
  check_side(checks, named("right"), in.right[i], named("right_statistics"), in.right_statistics[i], count,
             "n", dtype);
  const int64_t n = in.right[i].size(1);
  BlockGroup group{0,
                   count,
                   m,
                   n,
                   {in.left[i], in.left_statistics[i], in.left[i]},
                   {in.right[i], in.right_statistics[i], in.right[i]},
                   {},
                   {},
                   {}};
  if (with_roots) {
    const DTypes dtypes = {dtype, ScalarType::BFloat16};
    checks.contiguous(named("left_root"), in.left_root[i], {count, m, m}, dtypes);
    checks.contiguous(named("right_root"), in.right_root[i], {count, n, n}, dtypes);
    group.left.root = in.left_root[i];
    group.right.root = in.right_root[i];
  }
  return group;
}

// Throws, before anything is written, if an argument is not as base.py specifies. Roots are present if a
// product or a coupled update needs them.
inline std::vector<BlockGroup> checked_block_groups(const Checks& checks, const GroupArguments& in,
                                                    const FactorRule& rule,
                                                    const DTypes& view_dtypes = kViewDTypes) {
  const size_t count = in.left.size();
  const bool with_roots = in.precondition || (in.update && rule.coupled);
  checks.length("right", in.right, count);
  checks.length("left_statistics", in.left_statistics, count);
  checks.length("right_statistics", in.right_statistics, count);
  checks.length("left_root", in.left_root, with_roots ? count : 0);
  checks.length("right_root", in.right_root, with_roots ? count : 0);
  checks.tensor("norms", in.norms, {"N"}, kFactorDTypes);
  const ScalarType dtype = in.norms.scalar_type();
  GroupViews out(checks, "out", in.out, {dtype}), grad(checks, "grad", in.grad, view_dtypes),
      direction(checks, "direction", in.direction, view_dtypes);
  std::vector<BlockGroup> groups;
  int64_t blocks = 0;
  for (size_t i = 0; i < count; ++i) {
    BlockGroup group = checked_sides(checks, in, i, dtype, with_roots);
    group.first_block = blocks;
    blocks += group.blocks;
    if (in.precondition) group.out = out.take(group, i);
    if (in.precondition) group.direction = direction.take(group, i);
    if (in.update) group.grad = grad.take(group, i);
    groups.push_back(std::move(group));
  }
  out.finish();
  direction.finish();
  grad.finish();
  checks.contiguous("norms", in.norms, {blocks}, {dtype});
  checks.contiguous("scales", in.scales, {blocks}, {dtype});
  return groups;
}

}  // namespace kradagrad
