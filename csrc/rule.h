// The scalars of a factor update in the square-root form (kradagrad_ext/backends/base.py, UpdateRule). Plain
// C++, used by checks, CPU code, plans and kernels.
#pragma once

#include <cstdint>

namespace kradagrad {

// The way to make R with R R^T = H^-1: by a factorisation, or by a polynomial of H.
enum class Method { kCholesky, kProducts };

// The way to make float32 products on tensor cores.
enum class Precision { kBf16x3, kTf32x3, kFp32 };

// Columns of a side's statistics [N, 4].
enum Statistic : int { kRms, kWeight, kWhitened, kFallbacks, kStatistics };

struct FactorRule {
  double decay;
  double weight;
  double damping;
  double prior;
  double damped_updates;
  Method method;
  int64_t refine;
  Precision precision;
  bool coupled;
};

}  // namespace kradagrad
