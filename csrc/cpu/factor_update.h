// The update of the factors of a chunk of blocks (kradagrad_ext/backends/base.py, update_factor_).
//
// Neither A = sqrt(weight) U nor X / decay is ever formed. With c = weight / decay, y = X U and the unscaled
// Gram matrix G = U^T y the formulas become
//
//   N = I + c G,   X <- X / decay - (c / decay) y C y^T,   exact: C = (c (I / c + G))^-1,
//
// and the scalars are applied in the one pass that writes X. X is written last, whole or not at all.
#pragma once

#include <cstdint>
#include <vector>

#include "../update_rule.h"
#include "buffer.h"
#include "products.h"

namespace kradagrad::cpu {

// Scratch of one thread, shared by the updates it runs one after another.
template <class T>
struct Workspace {
  Buffer<T> y, z, gram, inverse, ratio, growth, square, downdate, cholesky;
};

// The largest matrix that the update of one block with an unfolding [d, k] forms, in elements.
int64_t largest_matrix(const UpdateRule& rule, int64_t d, int64_t k);

template <class T>
class FactorUpdate {
 public:
  FactorUpdate(const UpdateRule& rule, Workspace<T>& workspace) : rule_(rule), workspace_(workspace) {}

  // factor [count, d, d] and statistics [count, 2], contiguous; unfolding [count, d, k], each item contiguous
  // or the transpose of a contiguous one; active [count].
  void apply(T* factor, T* statistics, const bool* active, const Matrices<T>& unfolding);

 private:
  // Items, and the columns of their unfoldings that are fed at once. `pending`: is yet to be updated.
  struct Batch {
    Matrices<T> x, u;
    uint8_t* pending;
    double decay;
    Batch item(int64_t i) const { return {x.items(i, 1), u.items(i, 1), pending + i, decay}; }
  };

  bool prepare(T* x, T* statistics, const T* u, int64_t d, int64_t k, bool* overflow) const;
  Matrices<T> factor_times_unfolding(const Batch& batch, bool row_major);
  void exact(const Batch& batch);
  void plain(const Batch& batch);
  void refined(const Batch& batch, FactorScale scale, int64_t refine);
  std::vector<double> sizes_by_gram(const Matrices<T>& gram, FactorScale scale);
  std::vector<double> sizes_by_product(const Matrices<T>& u, const Matrices<T>& y, FactorScale scale);
  void refine_inverse(const Matrices<T>& gram, const std::vector<double>& t, double c, int64_t refine);
  void grow(const Matrices<T>& growth, const Matrices<T>& ratio);
  void multiply_symmetric(const Matrices<T>& a, const Matrices<T>& b);
  void downdate(const Batch& batch, const Matrices<T>& y, const Matrices<T>& z,
                const std::vector<double>& weights);

  UpdateRule rule_;
  Workspace<T>& workspace_;
};

}  // namespace kradagrad::cpu
