// The parameters of the kernels on the scalars of M matrices.
#pragma once

#include <cstdint>

#include "../../scalar_rules.h"

namespace kradagrad::cuda {

constexpr int kScalarThreads = 128;

struct GuardGradients {
  Scalars<float>* scalars;  // [M]
  float* coefficients;      // [M, kCoefficients]
  bool *active, *restarts;  // [M]
  const double* norms;      // [M]
  const float* numel;       // [M]
  const bool* present;      // [M]
  const float* weight_decay;
  int64_t count;  // M
  GuardRule<float> rule;
};

struct ScaleUpdates {
  float* coefficients;                           // [M, kCoefficients]
  Scalars<float>* scalars;                       // [M]
  const float* graft_norms;                      // [S]
  const int64_t* graft_offsets;                  // [M + 1]
  const float* update_norms;                     // [B]
  const int64_t *update_order, *update_offsets;  // [B], [M + 1]
  const float* numel;                            // [M]
  const bool* preconditioned;                    // [M]
  int64_t count;                                 // M
  LengthRule<float> rule;
};

}  // namespace kradagrad::cuda
