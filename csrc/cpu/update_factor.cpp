// update_factor_: one mode's factors X [N, d, d] from the unfoldings [d, k] of their blocks; the formulas are
// in factor_update.h. Threads take chunks of consecutive blocks (parallel.h); unfoldings are packed first.
#include <torch/csrc/stable/library.h>

#include <string>
#include <vector>

#include "../checks.h"
#include "../update_rule.h"
#include "block_views.h"
#include "dtypes.h"
#include "factor_update.h"
#include "parallel.h"

namespace kradagrad::cpu {
namespace {

template <class T>
void run(const Tensor& factor, const Tensor& statistics, const std::vector<BlockView>& blocks, int64_t k,
         const bool* active, const UpdateRule& rule) {
  const int64_t count = factor.size(0), d = factor.size(1);
  T* const factors = static_cast<T*>(factor.data_ptr());
  T* const by_block = static_cast<T*>(statistics.data_ptr());
  const int64_t chunk = chunk_size(count, largest_matrix(rule, d, k) * sizeof(T));
  for_each_chunk(count, chunk, [&] {
    return [&, workspace = Workspace<T>(), packed = Buffer<T>()](int64_t first, int64_t number) mutable {
      const auto unfolding = Matrices<T>::contiguous(packed.reserve(number * d * k), number, d, k);
      for (int64_t i = 0; i < number; ++i) {
        if (active[first + i]) {
          pack(blocks[first + i], d, k, unfolding.item(i));
        } else {
          std::fill_n(unfolding.item(i), d * k, T(0));
        }
      }
      FactorUpdate<T>(rule, workspace)
          .apply(factors + first * d * d, by_block + 2 * first, active + first, unfolding);
    };
  });
}

void update_factor(const Tensor factor, const Tensor statistics, const Tensors unfolding, const Tensor active,
                   double decay, double weight, double damping, const std::string factor_scale,
                   int64_t refine, const std::string precision) {
  const Checks checks("update_factor_", factor);
  checks.contiguous("factor", factor, {"N", "d", "d"}, kFactorDTypes);
  const int64_t count = factor.size(0), d = factor.size(1);
  checks.contiguous("statistics", statistics, {count, 2}, {factor.scalar_type()});
  checks.block_views("unfolding", unfolding, count, d, "k", kViewDTypes);
  const int64_t k = unfolding.empty() ? 0 : unfolding[0].size(unfolding[0].dim() - 1);
  checks.block_views("unfolding", unfolding, count, d, k, kViewDTypes);
  checks.contiguous("active", active, {count}, {ScalarType::Bool});
  const UpdateRule rule = update_rule(checks, decay, weight, damping, factor_scale, refine, precision);
  if (d == 0 || k == 0) return;
  const auto* flags = static_cast<const bool*>(active.data_ptr());
  with_compute_type(factor.scalar_type(), [&](auto type) {
    run<decltype(type)>(factor, statistics, list_blocks(unfolding), k, flags, rule);
  });
}

}  // namespace
}  // namespace kradagrad::cpu

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CPU, m) {
  m.impl("update_factor_", TORCH_BOX(&kradagrad::cpu::update_factor));
}
