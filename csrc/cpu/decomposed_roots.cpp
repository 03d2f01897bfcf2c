// decomposed_roots (kradagrad_ext/backends/base.py), one matrix a thread:
//
//   X = F F^T = V diag(e) V^T,   P = X^(1/p) = W^T W, W = diag(e)^(1/2p) V^T,   residual |P^p - X| / |X|
//
// torch's eigh decomposes the matrices of a batch sequentially, with threads inside each decomposition that a
// matrix of a few hundred rows cannot use.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <exception>
#include <limits>
#include <new>
#include <tuple>

#include "../checks.h"
#include "buffer.h"
#include "decompositions.h"
#include "dtypes.h"
#include "parallel.h"
#include "products.h"
#include "symmetric.h"

namespace kradagrad::cpu {
namespace {

// The eigendecomposition in T is accepted if the smallest eigenvalue of X is at least eps times the largest,
// divided by this constant; as in decomposed_roots.py.
constexpr double kEighCondition = 1e-3;

template <class T>
struct Scratch {
  Buffer<T> x, power, product;
  Buffer<double> f, x64, root;
};

// P = W^T W: the rows of W are the eigenvectors times the eigenvalues to the `power`. The vectors are
// overwritten.
template <class T>
void compose(T* root, const Spectrum& spectrum, int64_t d, double power) {
  const T* const value = static_cast<const T*>(spectrum.values.data_ptr());
  T* const data = static_cast<T*>(spectrum.vectors.data_ptr());
  const MatrixBatch<T> w{data, 1, d, d, 0, spectrum.vectors.stride(1), spectrum.vectors.stride(0)};
  for (int64_t i = 0; i < d; ++i) {
    const T scale = static_cast<T>(std::pow(std::max<double>(value[i], 0), power));
    for (int64_t j = 0; j < d; ++j) data[i * w.row_stride + j * w.col_stride] *= scale;
  }
  multiply(MatrixBatch<T>::contiguous(root, 1, d, d), w.transposed(), w, kUpperOut);
  mirror_upper(root, d);
}

// The upper triangle of X = F F^T.
template <class T>
void gram(T* x, T* f, int64_t d) {
  const auto factor = MatrixBatch<T>::contiguous(f, 1, d, d);
  multiply(MatrixBatch<T>::contiguous(x, 1, d, d), factor, factor.transposed(), kUpperOut);
}

// The root if X is too ill-conditioned for its eigenvalues in T.
void careful_root(double* root, double* f, int64_t d, int64_t p, Scratch<double>&) {
  compose(root, svd(f, d), d, 1.0 / static_cast<double>(p));
}

void careful_root(float* root, float* f, int64_t d, int64_t p, Scratch<float>& scratch) {
  double* const f64 = scratch.f.reserve(d * d);
  double* const x64 = scratch.x64.reserve(d * d);
  double* const root64 = scratch.root.reserve(d * d);
  std::copy_n(f, d * d, f64);
  gram(x64, f64, d);
  compose(root64, eigh(x64, d), d, 0.5 / static_cast<double>(p));
  for (int64_t i = 0; i < d * d; ++i) root[i] = static_cast<float>(root64[i]);
}

// True if an attempt succeeds. A failure to converge cannot be distinguished from torch's other errors.
template <class Attempt>
bool succeeds(const Attempt& attempt) {
  try {
    return attempt();
  } catch (const std::bad_alloc&) {
    throw;
  } catch (const std::exception&) {
    return false;
  }
}

// Returns false if both decompositions fail.
template <class T>
bool find_root(T* root, T* f, T* x, int64_t d, int64_t p, Scratch<T>& scratch) {
  const auto plain = [&] {
    const Spectrum spectrum = eigh(x, d);
    const T* const value = static_cast<const T*>(spectrum.values.data_ptr());
    if (!(value[0] * kEighCondition >= std::numeric_limits<T>::epsilon() * value[d - 1])) return false;
    compose(root, spectrum, d, 0.5 / static_cast<double>(p));
    return true;
  };
  const auto careful = [&] {
    careful_root(root, f, d, p, scratch);
    return true;
  };
  return succeeds(plain) || succeeds(careful);
}

// |P^p - X| / |X| with `size` = |X|^2; the upper triangle of X is overwritten.
template <class T>
double residual(T* root, T* x, double size, int64_t d, int64_t p, Scratch<T>& scratch) {
  const auto matrix = [d](T* data) { return MatrixBatch<T>::contiguous(data, 1, d, d); };
  const auto p1 = matrix(root);
  auto power = p1, product = matrix(scratch.power.reserve(d * d)),
       spare = matrix(scratch.product.reserve(d * d));
  for (int64_t order = 2; order < p; ++order) {
    multiply(product, p1, power, kUpperOut);
    mirror_upper(product.data, d);
    power = product;
    std::swap(product, spare);
  }
  multiply(matrix(x), p1, power, kUpperOut, T(1), T(-1));
  return std::sqrt(squared_norm_of_upper(x, d) / size);
}

// Writes the root of one matrix and returns the residual; zeros and NaN if there is no root.
template <class T>
double take_root(T* root, T* f, int64_t d, int64_t p, Scratch<T>& scratch) {
  T* const x = scratch.x.reserve(d * d);
  gram(x, f, d);
  const double size = squared_norm_of_upper(x, d);
  std::fill_n(root, d * d, T(0));
  if (!(size > 0) || !std::isfinite(size)) return std::nan("");
  if (p == 1) {
    std::copy_n(x, d * d, root);
    mirror_upper(root, d);
    return 0;
  }
  return find_root(root, f, x, d, p, scratch) ? residual(root, x, size, d, p, scratch) : std::nan("");
}

std::tuple<Tensor, Tensor> decomposed_roots(const Tensor factors, int64_t p) {
  const Checks checks("decomposed_roots", factors);
  checks.tensor("factors", factors, {"N", "d", "d"}, kFactorDTypes);
  checks.scalar("p", p >= 1, "at least 1", p);
  const int64_t count = factors.size(0), d = factors.size(1);
  const std::array<int64_t, 3> sizes{count, d, d};
  const Tensor packed = torch::stable::contiguous(factors);
  Tensor roots = torch::stable::new_empty(packed, {sizes.data(), 3});
  Tensor residuals = torch::stable::new_empty(packed, {sizes.data(), 1});
  with_compute_type(packed.scalar_type(), [&](auto type) {
    using T = decltype(type);
    T* const f = static_cast<T*>(packed.data_ptr());
    T* const root = static_cast<T*>(roots.data_ptr());
    T* const residual = static_cast<T*>(residuals.data_ptr());
    for_each_chunk(count, 1, [&] {
      return [&, scratch = Scratch<T>()](int64_t i, int64_t) mutable {
        residual[i] = static_cast<T>(take_root(root + i * d * d, f + i * d * d, d, p, scratch));
      };
    });
  });
  return {roots, residuals};
}

}  // namespace
}  // namespace kradagrad::cpu

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CPU, m) {
  m.impl("decomposed_roots", TORCH_BOX(&kradagrad::cpu::decomposed_roots));
}
