// The launches of kron_step_ and update_factor_.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "batch.h"
#include "kernel_choice.h"
#include "launch.h"

namespace kradagrad::cuda {

// A factor and its statistics; contiguous.
struct FactorTensors {
  TensorInfo factor;  // [N, d, d]
  float* statistics;  // [N, 2]
};

// One group: N blocks [m, n].
struct KronTensors {
  int64_t blocks;
  int32_t m, n;
  TensorInfos grad;  // not looked at unless factors are updated
  std::optional<FactorTensors> left, right;
  TensorInfos direction, out;  // not looked at unless the product is made
  TensorInfo left_root, right_root;
};

struct KronStepInputs {
  std::vector<KronTensors> groups;
  FactorRule rule;
  Precision precision;
  bool update, precondition;
  const bool* active;                // by block of all groups
  float* norms;                      // by block of all groups; null unless the product is made
  int32_t shared_limit = 163 << 10;  // bytes of shared memory that one CTA may have
};

constexpr int64_t kScratchBytes = int64_t{256} << 20;

// Blocks of up to kResidentSide a side (64 where shared memory is small) in one launch of the resident
// kernel; the others by grouped products, in slices of blocks whose intermediate results take about
// `scratch_bytes` (at least one block).
Plan plan_kron_step(const KronStepInputs& inputs, int64_t scratch_bytes = kScratchBytes);

}  // namespace kradagrad::cuda
