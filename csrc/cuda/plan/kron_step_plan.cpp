#include "kron_step_plan.h"

#include <algorithm>

#include "../kernels/kron_step_resident.h"
#include "grouped_plan.h"

namespace kradagrad::cuda {
namespace {

// Bytes of the resident kernel's shared memory for sides of up to 16 `tiles` (resident_factor.cuh).
int32_t resident_shared(int32_t tiles) {
  return (tiles * tiles + tiles * (tiles + 1)) * 1024 + (tiles + 1) * 4;
}

bool is_resident(const KronTensors& group, int32_t shared_limit) {
  const int32_t side = resident_shared(kResidentSide / 16) <= shared_limit ? kResidentSide : 64;
  return std::max(group.m, group.n) <= side;
}

// Blocks of no elements have nothing but norms.
bool is_empty(const KronGroup& group) { return group.m == 0 || group.n == 0; }

KronGroup table_entry(const KronTensors& tensors, const KronStepInputs& inputs, int64_t first_block,
                      Views& views) {
  KronGroup group{};
  group.first_block = first_block;
  group.blocks = tensors.blocks;
  group.m = tensors.m;
  group.n = tensors.n;
  if (inputs.update) {
    group.grad = views.add(tensors.grad);
    if (tensors.left) group.left = views.add({tensors.left->factor});
    if (tensors.right) group.right = views.add({tensors.right->factor});
    group.left_statistics = tensors.left ? tensors.left->statistics : nullptr;
    group.right_statistics = tensors.right ? tensors.right->statistics : nullptr;
  }
  if (inputs.precondition) {
    group.direction = views.add(tensors.direction);
    group.out = views.add(tensors.out);
    group.left_root = views.add({tensors.left_root});
    group.right_root = views.add({tensors.right_root});
  }
  return group;
}

void plan_resident(Planner& planner, const KronStepInputs& inputs, const std::vector<KronGroup>& groups,
                   const View* views) {
  int32_t side = 1;
  int64_t blocks = 0;
  for (const KronGroup& group : groups) {
    if (!is_empty(group)) side = std::max({side, group.m, group.n});
    blocks += group.blocks;
  }
  side = side <= 64 ? 64 : kResidentSide;
  const KronStepResident parameters{planner.add(groups),
                                    views,
                                    static_cast<int32_t>(groups.size()),
                                    inputs.update,
                                    inputs.precondition,
                                    inputs.rule,
                                    inputs.active,
                                    inputs.norms};
  const std::string kernel = "kron_step_resident_" + std::to_string(side) + "_" + name_of(inputs.precision);
  planner.launch(kernel, blocks, 2 * side, resident_shared(side / 16), parameters);
}

}  // namespace

Plan plan_kron_step(const KronStepInputs& inputs, int64_t scratch_bytes) {
  Planner planner;
  Views views;
  std::vector<KronGroup> resident, grouped;
  int64_t first_block = 0, first_cta = 0;
  for (const KronTensors& group : inputs.groups) {
    if (group.blocks > 0) {
      KronGroup entry = table_entry(group, inputs, first_block, views);
      const bool fits = is_empty(entry) || is_resident(group, inputs.shared_limit);
      if (fits) {
        entry.first_cta = first_cta;
        first_cta += group.blocks;
      }
      (fits ? resident : grouped).push_back(entry);
    }
    first_block += group.blocks;
  }
  if (!resident.empty()) plan_resident(planner, inputs, resident, planner.add(views.all()));
  if (!grouped.empty()) GroupedPlan(planner, inputs, grouped, views, scratch_bytes).plan();
  return planner.take();
}

}  // namespace kradagrad::cuda
