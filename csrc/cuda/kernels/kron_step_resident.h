// kron_step_ for blocks of up to 128 x 128, one CTA a block; see kron_step_resident.cu.
#pragma once

#include "table.h"

namespace kradagrad::cuda {

struct KronStepResident {
  const KronGroup* groups;
  const View* views;
  int32_t group_count;
  int32_t update;        // both factors from the gradients
  int32_t precondition;  // out = left_root direction right_root
  FactorRule rule;
  const bool* active;  // by block of all groups
  float* norms;        // by block of all groups
};

}  // namespace kradagrad::cuda
