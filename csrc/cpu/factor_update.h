// The update of the factors of one side of a chunk of blocks (kradagrad_ext/backends/base.py,
// update_factor_):
//
//   B = F^T U,   H = decay I + weight s^2 B B^T + c F^T F,   F <- F R,   R R^T = H^-1 or above it
//
// where s U has the norm of the gradient. By Cholesky H = T^T T, R = T^-1: F is upper triangular before and
// after, and every product skips the zero triangle; an F that is not upper triangular is made so first. F is
// written last, and only if all of it is finite.
#pragma once

#include <cstdint>
#include <vector>

#include "../rule.h"
#include "buffer.h"
#include "products.h"

namespace kradagrad::cpu {

// One side's arrays from a chunk's first block on.
template <class T>
struct SideArrays {
  void* factor;  // [count, d, d], of T or bfloat16
  bool bfloat16;
  T* statistics;  // [count, kStatistics]
};

// The unfoldings of a chunk's blocks, and numbers of each item.
template <class T>
struct Unfoldings {
  MatrixBatch<T> u;                   // [count, d, k]
  std::vector<double> squared_norms;  // of the gradients
  std::vector<double> stretches;      // |U|_F^2 / squared_norms; 1 without coupling
};

// Scratch memory of a thread, shared by its consecutive updates.
template <class T>
struct UpdateScratch {
  Buffer<T> factor, b, h, damped, power, product, root;
};

// The largest matrix that the update of one block with an unfolding [d, k] forms, in elements.
inline int64_t largest_matrix(int64_t d, int64_t k) { return d * (d > k ? d : k); }

template <class T>
class FactorUpdate {
 public:
  FactorUpdate(const FactorRule& rule, UpdateScratch<T>& scratch) : rule_(rule), scratch_(scratch) {}

  // Updates factors and statistics. `scales`: the scales already applied to the gradients; 0 for an inactive
  // block.
  void apply(const SideArrays<T>& side, const T* scales, const Unfoldings<T>& unfoldings);

 private:
  // New statistics of an item. `ready`: it has a gradient, and they are finite; `counted`: as a fallback.
  struct Item {
    bool ready, counted;
    double rms, weight;
  };

  Item prepare(const T* statistics, double squared_norm, double stretch, int64_t elements) const;
  void load(const SideArrays<T>& side, const Unfoldings<T>& unfoldings);
  void load_item(const SideArrays<T>& side, int64_t i, int64_t d, int64_t k);
  void whiten(const Unfoldings<T>& unfoldings);
  void add_damping(int64_t k);
  void times_inverse_root();
  void times_polynomial();
  void multiply_symmetric(const MatrixBatch<T>& out, const MatrixBatch<T>& a, const MatrixBatch<T>& b);
  void solve_failed_item(int64_t i, const Unfoldings<T>& unfoldings);
  void store(const SideArrays<T>& side, const T* scales, const Unfoldings<T>& unfoldings);
  double weight_of(const Unfoldings<T>& unfoldings, int64_t i) const;
  bool triangular() const { return rule_.method == Method::kCholesky; }
  Part shape() const { return triangular() ? Part::kUpper : Part::kWhole; }

  FactorRule rule_;
  UpdateScratch<T>& scratch_;
  std::vector<Item> items_;
  std::vector<uint8_t> failed_;
  std::vector<double> traces_;
  MatrixBatch<T> f_, b_, h_;  // b_ is B^T, whose products need no transposed panels
};

}  // namespace kradagrad::cpu
