// The arguments of kron_step_, checked and cut into groups: N_i blocks [m_i, n_i] each. The lists of block
// views hold the blocks of all groups, one group after the other, and so do `norms` and `active`.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "checks.h"

namespace kradagrad {

struct KronArguments {
  Tensors left, right, left_statistics, right_statistics;
  Tensors out;
  Tensor norms;
  Tensors grad, direction;
  Tensors left_root, right_root;
  Tensor active;
  bool update;

  bool precondition() const { return !out.empty(); }
};

struct KronGroup {
  int64_t first_block, blocks, m, n;
  Tensor left, right, left_statistics, right_statistics;
  Tensors out, grad, direction;
  Tensors roots;  // left and right, or none
};

// Takes the views of one group after the other off a list; those of no blocks are passed over.
class ViewSplitter {
 public:
  ViewSplitter(const Checks& checks, std::string name, const Tensors& views, const DTypes& dtypes)
      : checks_(checks), name_(std::move(name)), views_(views), dtypes_(dtypes) {}

  Tensors take(const KronGroup& group, size_t index) {
    Tensors taken;
    int64_t held = 0;
    while (held < group.blocks && next_ < views_.size()) {
      if (Checks::block_count(views_[next_]) == 0) {
        ++next_;
        continue;
      }
      const std::string name = Checks::item(name_, next_);
      checks_.block_view(name, views_[next_], group.m, group.n, dtypes_);
      held += Checks::block_count(views_[next_]);
      taken.push_back(views_[next_++]);
    }
    if (held != group.blocks) {
      checks_.fail(name_,
                   "views of " + std::to_string(group.blocks) + " blocks for group " + std::to_string(index),
                   std::to_string(held) + " blocks");
    }
    return taken;
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
  const DTypes& dtypes_;
  size_t next_ = 0;
};

// One group's factors, statistics and roots.
inline KronGroup checked_factors(const Checks& checks, const KronArguments& in, size_t i,
                                 const DTypes& dtype) {
  const auto named = [&](const char* name) { return Checks::item(name, i); };
  checks.contiguous(named("left"), in.left[i], {"N", "m", "m"}, dtype);
  const int64_t count = in.left[i].size(0), m = in.left[i].size(1);
  checks.contiguous(named("right"), in.right[i], {count, "n", "n"}, dtype);
  const int64_t n = in.right[i].size(1);
  checks.contiguous(named("left_statistics"), in.left_statistics[i], {count, 2}, dtype);
  checks.contiguous(named("right_statistics"), in.right_statistics[i], {count, 2}, dtype);
  KronGroup group{0,  count, m,  n, in.left[i], in.right[i], in.left_statistics[i], in.right_statistics[i],
                  {}, {},    {}, {}};
  if (in.precondition()) {
    const DTypes root_dtypes = {dtype[0], ScalarType::BFloat16};
    checks.contiguous(named("left_root"), in.left_root[i], {count, m, m}, root_dtypes);
    checks.contiguous(named("right_root"), in.right_root[i], {count, n, n}, root_dtypes);
    group.roots = {in.left_root[i], in.right_root[i]};
  }
  return group;
}

inline void check_lengths(const Checks& checks, const KronArguments& in) {
  const size_t groups = in.left.size(), roots = in.precondition() ? groups : 0;
  checks.length("right", in.right, groups);
  checks.length("left_statistics", in.left_statistics, groups);
  checks.length("right_statistics", in.right_statistics, groups);
  checks.length("left_root", in.left_root, roots);
  checks.length("right_root", in.right_root, roots);
  if (!in.precondition()) checks.length("direction", in.direction, 0);
}

// Throws, before anything is written, where an argument is not as base.py says.
inline std::vector<KronGroup> checked_groups(const Checks& checks, const KronArguments& in,
                                             const DTypes& view_dtypes = kViewDTypes) {
  check_lengths(checks, in);
  const DTypes dtype = in.left.empty() ? kFactorDTypes : DTypes{in.left[0].scalar_type()};
  ViewSplitter out(checks, "out", in.out, dtype), grad(checks, "grad", in.grad, view_dtypes),
      direction(checks, "direction", in.direction, view_dtypes);
  std::vector<KronGroup> groups;
  int64_t blocks = 0;
  if (!in.left.empty()) checks.contiguous("left[0]", in.left[0], {"N", "m", "m"}, kFactorDTypes);
  for (size_t i = 0; i < in.left.size(); ++i) {
    KronGroup group = checked_factors(checks, in, i, dtype);
    group.first_block = blocks;
    blocks += group.blocks;
    if (in.precondition()) group.out = out.take(group, i);
    if (in.precondition()) group.direction = direction.take(group, i);
    if (in.update) group.grad = grad.take(group, i);
    groups.push_back(std::move(group));
  }
  out.finish();
  direction.finish();
  if (in.update) grad.finish();
  checks.contiguous("norms", in.norms, {blocks}, dtype);
  checks.contiguous("active", in.active, {blocks}, {ScalarType::Bool});
  return groups;
}

}  // namespace kradagrad
