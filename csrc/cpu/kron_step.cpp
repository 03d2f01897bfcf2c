// kron_step_ and update_factor_ (kradagrad_ext/backends/base.py), group by group:
//
//   if update:        U = G and G^T, or coupled G P_r and (P_l G)^T; the factors of both sides
//                     (factor_update.h)
//   if precondition:  V = P_l (D / rms) P_r,   norms = |V|_F^2
//
// Threads take chunks of consecutive blocks (parallel.h). A chunk's gradients and directions are packed into
// scratch memory first, and its results are written from there last, so `out` may be `direction`.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <string>
#include <vector>

#include "../block_groups.h"
#include "block_views.h"
#include "dtypes.h"
#include "factor_update.h"
#include "parallel.h"
#include "products.h"
#include "vector_loops.h"

namespace kradagrad::cpu {
namespace {

// The arrays of a side from block `first` on.
template <class T>
SideArrays<T> arrays_of(const Tensor& factor, const Tensor& statistics, int64_t first) {
  const bool bfloat16 = factor.scalar_type() == ScalarType::BFloat16;
  char* const data = static_cast<char*>(factor.data_ptr());
  const int64_t offset = first * factor.stride(0) * static_cast<int64_t>(bfloat16 ? 2 : sizeof(T));
  return {data + offset, bfloat16, static_cast<T*>(statistics.data_ptr()) + first * kStatistics};
}

// The blocks from `first` on, packed; blocks that are not active become zeros, which no result depends on.
template <class T>
MatrixBatch<T> packed(const std::vector<BlockView>& blocks, const T* scales, int64_t first, int64_t count,
                      int64_t rows, int64_t cols, Buffer<T>& buffer) {
  const auto matrices = MatrixBatch<T>::contiguous(buffer.reserve(count * rows * cols), count, rows, cols);
  for (int64_t i = 0; i < count; ++i) {
    if (scales[first + i] != 0) {
      pack(blocks[first + i], rows, cols, matrices.item(i));
    } else {
      std::fill_n(matrices.item(i), rows * cols, T(0));
    }
  }
  return matrices;
}

// Gradients times their scales, so that no square over- or underflows.
template <class T>
MatrixBatch<T> scaled(const std::vector<BlockView>& blocks, const T* scales, int64_t first, int64_t count,
                      int64_t rows, int64_t cols, Buffer<T>& buffer) {
  const auto matrices = packed(blocks, scales, first, count, rows, cols, buffer);
  for (int64_t i = 0; i < count; ++i) {
    if (scales[first + i] != 1) scale(matrices.item(i), scales[first + i], matrices.item(i), rows * cols);
  }
  return matrices;
}

template <class T>
std::vector<double> squared_norms(const MatrixBatch<T>& matrices) {
  std::vector<double> norms;
  const int64_t size = matrices.rows * matrices.cols;
  for (int64_t i = 0; i < matrices.count; ++i) norms.push_back(dot(matrices.item(i), matrices.item(i), size));
  return norms;
}

// Unfoldings that are whitened on the other side.
template <class T>
Unfoldings<T> coupled(const MatrixBatch<T>& u, const std::vector<double>& gradient_norms,
                      const std::vector<double>& product_norms) {
  std::vector<double> stretches;
  for (size_t i = 0; i < gradient_norms.size(); ++i) {
    stretches.push_back(gradient_norms[i] > 0 ? product_norms[i] / gradient_norms[i] : 0);
  }
  return {u, gradient_norms, stretches};
}

// Inputs of all threads: the blocks of the lists, and the arrays by block.
template <class T>
struct KronStep {
  const BlockGroup& in;
  FactorRule rule;
  bool update, precondition;
  std::vector<BlockView> out, grad, direction;
  const T* scales;
  T* norms;
};

// The scratch memory of a thread, and the step of a chunk of blocks.
template <class T>
class Worker {
 public:
  explicit Worker(const KronStep<T>& step) : step_(step), m_(step.in.m), n_(step.in.n) {}

  void operator()(int64_t first, int64_t count) {
    if (step_.precondition || (step_.update && step_.rule.coupled)) {
      left_ = root(step_.in.left.root, first, count, left_root_);
      right_ = root(step_.in.right.root, first, count, right_root_);
    }
    if (step_.update) update(first, count);
    if (step_.precondition) precondition(first, count);
  }

 private:
  void update(int64_t first, int64_t count) {
    const auto g = scaled(step_.grad, step_.scales, first, count, m_, n_, packed_);
    const std::vector<double> norms = squared_norms(g);
    const std::vector<double> ones(count, 1.0);
    Unfoldings<T> left{g, norms, ones}, right{g.transposed(), norms, ones};
    if (step_.rule.coupled) {
      const auto by_right = MatrixBatch<T>::contiguous(half_.reserve(count * m_ * n_), count, m_, n_);
      const auto by_left = MatrixBatch<T>::contiguous(other_half_.reserve(count * m_ * n_), count, m_, n_);
      multiply(by_right, g, right_);
      multiply(by_left, left_, g);
      left = coupled(by_right, norms, squared_norms(by_right));
      right = coupled(by_left.transposed(), norms, squared_norms(by_left));
    }
    FactorUpdate<T> updated(step_.rule, scratch_);
    updated.apply(arrays_of<T>(step_.in.left.factor, step_.in.left.statistics, first), step_.scales + first,
                  left);
    updated.apply(arrays_of<T>(step_.in.right.factor, step_.in.right.statistics, first), step_.scales + first,
                  right);
  }

  void precondition(int64_t first, int64_t count) {
    const auto direction = packed(step_.direction, step_.scales, first, count, m_, n_, packed_);
    const auto half = MatrixBatch<T>::contiguous(half_.reserve(count * m_ * n_), count, m_, n_);
    multiply(half, left_, direction);
    multiply(direction, half, right_);
    const T* const statistics = static_cast<const T*>(step_.in.left.statistics.data_ptr());
    T* const norms = step_.norms + first;
    for (int64_t i = 0; i < count; ++i) {
      norms[i] = 0;
      if (step_.scales[first + i] == 0) continue;
      const T rms = statistics[(first + i) * kStatistics + kRms];
      if (rms > 0) {
        scale(direction.item(i), 1 / rms, direction.item(i), m_ * n_);
      } else {
        std::fill_n(direction.item(i), m_ * n_, T(0));
      }
      norms[i] = static_cast<T>(dot(direction.item(i), direction.item(i), m_ * n_));
      unpack(direction.item(i), m_, n_, step_.out[first + i]);
    }
  }

  static MatrixBatch<T> root(const Tensor& root, int64_t first, int64_t count, Buffer<T>& buffer) {
    const int64_t side = root.size(1), size = side * side;
    const bool in_place = root.scalar_type() == dtype_of<T>;
    T* const values =
        read_as(root, first * size, count * size, in_place ? nullptr : buffer.reserve(count * size));
    return MatrixBatch<T>::contiguous(values, count, side, side);
  }

  const KronStep<T>& step_;
  int64_t m_, n_;
  MatrixBatch<T> left_, right_;
  UpdateScratch<T> scratch_;
  Buffer<T> packed_, half_, other_half_, left_root_, right_root_;
};

template <class T>
void run(const BlockGroup& group, const GroupArguments& in, const FactorRule& rule) {
  const int64_t count = group.blocks, m = group.m, n = group.n;
  T* const norms = static_cast<T*>(in.norms.data_ptr()) + group.first_block;
  if (m == 0 || n == 0) {
    if (in.precondition) std::fill_n(norms, count, T(0));
    return;
  }
  const KronStep<T> step{group,
                         rule,
                         in.update,
                         in.precondition,
                         list_blocks(group.out),
                         list_blocks(group.grad),
                         list_blocks(group.direction),
                         static_cast<const T*>(in.scales.data_ptr()) + group.first_block,
                         norms};
  const int64_t largest = std::max(largest_matrix(m, n), largest_matrix(n, m));
  for_each_chunk(count, chunk_size(count, largest * sizeof(T)), [&] { return Worker<T>(step); });
}

void kron_step(const Tensors left, const Tensors right, const Tensors left_statistics,
               const Tensors right_statistics, const Tensors out, const Tensor norms, const Tensors grad,
               const Tensors direction, const Tensors left_root, const Tensors right_root,
               const Tensor scales, double decay, double weight, double damping, double prior,
               double damped_updates, const std::string method, int64_t refine, const std::string precision,
               bool coupled, bool update, bool precondition) {
  const GroupArguments in{left,      right,     left_statistics, right_statistics, out,    norms,       grad,
                          direction, left_root, right_root,      scales,           update, precondition};
  const Checks checks("kron_step_", norms);
  const FactorRule rule =
      factor_rule(checks, decay, weight, damping, prior, damped_updates, method, refine, precision, coupled);
  const std::vector<BlockGroup> groups = checked_block_groups(checks, in, rule);
  with_compute_type(norms.scalar_type(), [&](auto type) {
    for (const BlockGroup& group : groups) run<decltype(type)>(group, in, rule);
  });
}

template <class T>
void run_side(const Tensor& factor, const Tensor& statistics, const std::vector<BlockView>& blocks, int64_t k,
              const T* scales, const FactorRule& rule) {
  const int64_t count = factor.size(0), d = factor.size(1);
  const int64_t chunk = chunk_size(count, largest_matrix(d, k) * sizeof(T));
  for_each_chunk(count, chunk, [&] {
    return [&, scratch = UpdateScratch<T>(), buffer = Buffer<T>()](int64_t first, int64_t number) mutable {
      const auto u = scaled(blocks, scales, first, number, d, k, buffer);
      FactorUpdate<T>(rule, scratch)
          .apply(arrays_of<T>(factor, statistics, first), scales + first,
                 {u, squared_norms(u), std::vector<double>(number, 1.0)});
    };
  });
}

void update_factor(const Tensor factor, const Tensor statistics, const Tensors unfolding, const Tensor scales,
                   double decay, double weight, double damping, double prior, double damped_updates,
                   const std::string method, int64_t refine, const std::string precision, bool coupled) {
  const Checks checks("update_factor_", statistics);
  checks.tensor("statistics", statistics, {"N", kStatistics}, kFactorDTypes);
  check_side(checks, "factor", factor, "statistics", statistics, statistics.size(0), "d",
             statistics.scalar_type());
  const int64_t count = factor.size(0), d = factor.size(1);
  checks.block_views("unfolding", unfolding, count, d, "k", kViewDTypes);
  const int64_t k = unfolding.empty() ? 0 : unfolding[0].size(unfolding[0].dim() - 1);
  checks.block_views("unfolding", unfolding, count, d, k, kViewDTypes);
  checks.contiguous("scales", scales, {count}, {statistics.scalar_type()});
  const FactorRule rule =
      factor_rule(checks, decay, weight, damping, prior, damped_updates, method, refine, precision, coupled);
  if (d == 0 || k == 0) return;
  with_compute_type(statistics.scalar_type(), [&](auto type) {
    using T = decltype(type);
    run_side(factor, statistics, list_blocks(unfolding), k, static_cast<const T*>(scales.data_ptr()), rule);
  });
}

}  // namespace
}  // namespace kradagrad::cpu

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CPU, m) {
  m.impl("kron_step_", TORCH_BOX(&kradagrad::cpu::kron_step));
  m.impl("update_factor_", TORCH_BOX(&kradagrad::cpu::update_factor));
}
