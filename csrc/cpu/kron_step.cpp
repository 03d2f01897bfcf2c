// kron_step_: both factor updates of order-2 blocks and the two-sided product, group by group:
//
//   if update: left from G, right from G^T (factor_update.h);   P = left_root D right_root;   norms = |P|_F^2
//
// Threads take chunks of consecutive blocks (parallel.h). A chunk's gradients and directions are packed into
// scratch first and its results written from scratch last, so `out` may be `direction`.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../kron_groups.h"
#include "../update_rule.h"
#include "block_views.h"
#include "dtypes.h"
#include "factor_update.h"
#include "parallel.h"
#include "products.h"
#include "vector_loops.h"

namespace kradagrad::cpu {
namespace {

// What all threads read: the blocks of the lists and the arrays by block.
template <class T>
struct Step {
  const KronGroup& in;
  UpdateRule rule;
  bool update, precondition;
  std::vector<BlockView> out, grad, direction;
  int64_t m, n;
  const bool* active;
  T* norms;
};

// One thread's scratch, and the step of a chunk of blocks.
template <class T>
class Worker {
 public:
  explicit Worker(const Step<T>& step) : step_(step) {}

  void operator()(int64_t first, int64_t count) {
    if (step_.update) update_factors(first, count);
    if (step_.precondition) precondition(first, count);
  }

 private:
  // Packs the active blocks; the others are zeros, which nothing depends on.
  Matrices<T> pack_chunk(const std::vector<BlockView>& blocks, int64_t first, int64_t count) {
    const int64_t m = step_.m, n = step_.n;
    const auto packed = Matrices<T>::contiguous(packed_.reserve(count * m * n), count, m, n);
    for (int64_t i = 0; i < count; ++i) {
      if (step_.active[first + i]) {
        pack(blocks[first + i], m, n, packed.item(i));
      } else {
        std::fill_n(packed.item(i), m * n, T(0));
      }
    }
    return packed;
  }

  void update_factors(int64_t first, int64_t count) {
    const auto grad = pack_chunk(step_.grad, first, count);
    FactorUpdate<T> updated(step_.rule, workspace_);
    updated.apply(data(step_.in.left, first), data(step_.in.left_statistics, first), step_.active + first,
                  grad);
    updated.apply(data(step_.in.right, first), data(step_.in.right_statistics, first), step_.active + first,
                  grad.transposed());
  }

  void precondition(int64_t first, int64_t count) {
    const int64_t m = step_.m, n = step_.n;
    const auto direction = pack_chunk(step_.direction, first, count);
    const auto half = Matrices<T>::contiguous(half_.reserve(count * m * n), count, m, n);
    multiply(half, roots(step_.in.roots[0], first, count), direction);
    multiply(direction, half, roots(step_.in.roots[1], first, count));
    T* const norms = step_.norms + first;
    for (int64_t i = 0; i < count; ++i) {
      const bool active = step_.active[first + i];
      norms[i] = active ? static_cast<T>(dot(direction.item(i), direction.item(i), m * n)) : T(0);
      if (active) unpack(direction.item(i), m, n, step_.out[first + i]);
    }
  }

  Matrices<T> roots(const Tensor& root, int64_t first, int64_t count) {
    const int64_t side = root.size(1), size = side * side;
    const bool in_place = root.scalar_type() == dtype_of<T>;
    T* const scratch = in_place ? nullptr : root_.reserve(count * size);
    T* const values = read_as(root, first * size, count * size, scratch);
    return Matrices<T>::contiguous(values, count, side, side);
  }

  // The rows of a contiguous tensor from `first` on.
  static T* data(const Tensor& tensor, int64_t first) {
    return static_cast<T*>(tensor.data_ptr()) + first * tensor.stride(0);
  }

  const Step<T>& step_;
  Workspace<T> workspace_;
  Buffer<T> packed_, half_, root_;
};

template <class T>
void run(const KronGroup& group, const KronArguments& in, const UpdateRule& rule) {
  const int64_t count = group.blocks, m = group.m, n = group.n;
  T* const norms = static_cast<T*>(in.norms.data_ptr()) + group.first_block;
  if (m == 0 || n == 0) {
    if (in.precondition()) std::fill_n(norms, count, T(0));
    return;
  }
  const Step<T> step{group,
                     rule,
                     in.update,
                     in.precondition(),
                     list_blocks(group.out),
                     list_blocks(group.grad),
                     list_blocks(group.direction),
                     m,
                     n,
                     static_cast<const bool*>(in.active.data_ptr()) + group.first_block,
                     norms};
  const int64_t largest = std::max(largest_matrix(rule, m, n), largest_matrix(rule, n, m));
  for_each_chunk(count, chunk_size(count, largest * sizeof(T)), [&] { return Worker<T>(step); });
}

void kron_step(const Tensors left, const Tensors right, const Tensors left_statistics,
               const Tensors right_statistics, const Tensors out, const Tensor norms, const Tensors grad,
               const Tensors direction, const Tensors left_root, const Tensors right_root,
               const Tensor active, double decay, double weight, double damping,
               const std::string factor_scale, int64_t refine, const std::string precision, bool update) {
  const KronArguments in{left, right,     left_statistics, right_statistics, out,    norms,
                         grad, direction, left_root,       right_root,       active, update};
  const Checks checks("kron_step_", norms);
  const std::vector<KronGroup> groups = checked_groups(checks, in);
  const UpdateRule rule = update_rule(checks, decay, weight, damping, factor_scale, refine, precision);
  with_compute_type(norms.scalar_type(), [&](auto type) {
    for (const KronGroup& group : groups) run<decltype(type)>(group, in, rule);
  });
}

}  // namespace
}  // namespace kradagrad::cpu

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CPU, m) {
  m.impl("kron_step_", TORCH_BOX(&kradagrad::cpu::kron_step));
}
