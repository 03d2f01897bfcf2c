// One thread a chunk: batched products over all of its items, then passes item by item. Items that are not
// pending take part in the products and are never written.
#include "factor_update.h"

#include <algorithm>
#include <cmath>

#include "stacked_cholesky.h"
#include "symmetric.h"
#include "vector_loops.h"

namespace kradagrad::cpu {
namespace {

constexpr int64_t kFallbackRefine = 2;

// Whether t comes from the d x d matrix y U^T: always for `product`, and for the other norms where that is
// cheaper than U^T y, which has the same nonzero eigenvalues.
bool sized_by_product(FactorScale scale, int64_t d, int64_t k) {
  return scale == FactorScale::kProduct || (!bounded_by_trace(scale) && k > 2 * d);
}

// t of an item, from the norm or trace `size` of G.
double bound(FactorScale scale, double c, double size, int64_t d) {
  const double t = 1 + c * size;
  return scale == FactorScale::kTraceDim ? static_cast<double>(d) * t : t;
}

}  // namespace

int64_t largest_matrix(const UpdateRule& rule, int64_t d, int64_t k) {
  const int64_t columns = rule.columns_at_once(d, k);
  const bool gram = rule.inverts() || (!bounded_by_trace(rule.scale) && !sized_by_product(rule.scale, d, k));
  return std::max({d * k, d * d, gram ? columns * columns : 0});
}

template <class T>
void FactorUpdate<T>::apply(T* factor, T* statistics, const bool* active, const Matrices<T>& unfolding) {
  const int64_t count = unfolding.count, d = unfolding.rows, k = unfolding.cols;
  std::vector<uint8_t> ready(count), fell_back(count);
  for (int64_t i = 0; i < count; ++i) {
    bool overflow = false;
    ready[i] =
        active[i] && prepare(factor + i * d * d, statistics + 2 * i, unfolding.item(i), d, k, &overflow);
    fell_back[i] = overflow;
  }
  if (std::any_of(ready.begin(), ready.end(), [](uint8_t is) { return is; })) {
    const int64_t columns = rule_.columns_at_once(d, k);
    for (int64_t begin = 0; begin < k; begin += columns) {
      std::vector<uint8_t> pending = ready;
      const auto u = unfolding.col_range(begin, std::min(begin + columns, k));
      const Batch batch{Matrices<T>::contiguous(factor, count, d, d), u, pending.data(),
                        begin == 0 ? rule_.decay : 1.0};
      if (rule_.exact()) {
        exact(batch);
      } else if (rule_.refine > 0) {
        refined(batch, rule_.scale, rule_.refine);
      } else {
        plain(batch);
      }
      for (int64_t i = 0; i < count; ++i) {
        if (!pending[i]) continue;
        fell_back[i] = 1;
        if (rule_.exact()) refined(batch.item(i), FactorScale::kFrobenius, kFallbackRefine);
      }
    }
  }
  for (int64_t i = 0; i < count; ++i) statistics[2 * i + 1] += static_cast<T>(fell_back[i]);
}

// Relative damping of an active item: its running mean, and its first factor. False where nothing more is
// to be done, because there was no gradient yet or the mean or the factor is not finite.
template <class T>
bool FactorUpdate<T>::prepare(T* x, T* statistics, const T* u, int64_t d, int64_t k, bool* overflow) const {
  if (rule_.damping == 0) return true;
  const double size = dot(u, u, d * k) / static_cast<double>(d);
  const bool first = statistics[0] == 0;
  const double mean = first ? size : rule_.decay * statistics[0] + (1 - rule_.decay) * size;
  const double start = first ? 1 / (rule_.damping * size) : 1;
  if (mean <= 0) return false;
  *overflow = !std::isfinite(static_cast<T>(mean)) || !std::isfinite(static_cast<T>(start));
  if (*overflow) return false;
  statistics[0] = static_cast<T>(mean);
  if (first) {
    std::fill(x, x + d * d, T(0));
    for (int64_t i = 0; i < d; ++i) x[i * d + i] = static_cast<T>(start);
  }
  return true;
}

// y = X U, laid out like U unless row-major is asked for.
template <class T>
Matrices<T> FactorUpdate<T>::factor_times_unfolding(const Batch& batch, bool row_major) {
  const int64_t count = batch.u.count, d = batch.u.rows, k = batch.u.cols;
  T* const memory = workspace_.y.reserve(count * d * k);
  const auto y = row_major || batch.u.col_stride == 1
                     ? Matrices<T>::contiguous(memory, count, d, k)
                     : Matrices<T>::contiguous(memory, count, k, d).transposed();
  multiply(y, batch.x, batch.u);
  return y;
}

// C = N^-1 by Cholesky of I / c + G. Items whose Cholesky fails stay pending.
template <class T>
void FactorUpdate<T>::exact(const Batch& batch) {
  const int64_t count = batch.u.count, k = batch.u.cols;
  const double c = rule_.weight / batch.decay;
  const auto y = factor_times_unfolding(batch, true);
  const auto n = Matrices<T>::contiguous(workspace_.gram.reserve(count * k * k), count, k, k);
  multiply_lower(n, batch.u.transposed(), y);
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t j = 0; j < k; ++j) n.item(i)[j * k + j] += static_cast<T>(1 / c);
  }
  std::vector<uint8_t> failed(count);
  stacked_cholesky(n, y, failed.data(), workspace_.cholesky);
  std::vector<double> weights(count, 1 / batch.decay);
  for (int64_t i = 0; i < count; ++i) {
    if (failed[i]) weights[i] = NAN;
  }
  downdate(batch, y, y, weights);
}

// C = I / t.
template <class T>
void FactorUpdate<T>::plain(const Batch& batch) {
  const int64_t count = batch.u.count, d = batch.u.rows, k = batch.u.cols;
  const double c = rule_.weight / batch.decay;
  const auto y = factor_times_unfolding(batch, false);
  std::vector<double> sizes;
  if (bounded_by_trace(rule_.scale)) {
    for (int64_t i = 0; i < count; ++i) sizes.push_back(dot(batch.u.item(i), y.item(i), d * k));
  } else if (sized_by_product(rule_.scale, d, k)) {
    sizes = sizes_by_product(batch.u, y, rule_.scale);
  } else {
    const auto gram = Matrices<T>::contiguous(workspace_.gram.reserve(count * k * k), count, k, k);
    multiply_lower(gram, batch.u.transposed(), y);
    sizes = sizes_by_gram(gram, rule_.scale);
  }
  std::vector<double> t(count), weights(count);
  for (int64_t i = 0; i < count; ++i) {
    t[i] = bound(rule_.scale, c, sizes[i], d);
    weights[i] = std::isfinite(static_cast<T>(t[i])) ? c / batch.decay / t[i] : NAN;
  }
  downdate(batch, y, y, weights);
  for (int64_t i = 0; i < count; ++i) {  // y y^T may overflow where y y^T / t does not
    if (!batch.pending[i] || std::isnan(weights[i])) continue;
    const auto own = y.items(i, 1);
    scale(own.data, static_cast<T>(std::sqrt(1 / t[i])), own.data, d * k);
    downdate(batch.item(i), own, own, {c / batch.decay});
  }
}

// C = I / t refined: X / decay - (c / decay) (y C) y^T.
template <class T>
void FactorUpdate<T>::refined(const Batch& batch, FactorScale scale, int64_t refine) {
  const int64_t count = batch.u.count, d = batch.u.rows, k = batch.u.cols;
  const double c = rule_.weight / batch.decay;
  const auto y = factor_times_unfolding(batch, false);
  const auto gram = Matrices<T>::contiguous(workspace_.gram.reserve(count * k * k), count, k, k);
  multiply_lower(gram, batch.u.transposed(), y);
  std::vector<double> t =
      scale == FactorScale::kProduct ? sizes_by_product(batch.u, y, scale) : sizes_by_gram(gram, scale);
  for (double& item : t) item = bound(scale, c, item, d);
  refine_inverse(gram, t, c, refine);
  const auto inverse = Matrices<T>::contiguous(workspace_.inverse.get(), count, k, k);
  const auto z = Matrices<T>::contiguous(workspace_.z.reserve(count * d * k), count, d, k);
  multiply(z, y, inverse);
  std::vector<double> weights(count, c / batch.decay);
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(static_cast<T>(t[i]))) weights[i] = NAN;
  }
  downdate(batch, y, z, weights);
}

// The trace or norm of G that bounds its largest eigenvalue, from the lower triangle of G.
template <class T>
std::vector<double> FactorUpdate<T>::sizes_by_gram(const Matrices<T>& gram, FactorScale scale) {
  const int64_t k = gram.rows;
  std::vector<double> sizes(gram.count);
  Matrices<T> square = gram;
  if (scale == FactorScale::kSchatten4) {
    square = Matrices<T>::contiguous(workspace_.square.reserve(gram.count * k * k), gram.count, k, k);
    for (int64_t i = 0; i < gram.count; ++i) mirror_lower(gram.item(i), k);
    multiply_lower(square, gram, gram);
  }
  for (int64_t i = 0; i < gram.count; ++i) {
    if (bounded_by_trace(scale)) {
      sizes[i] = trace(gram.item(i), k);
    } else {
      const double norm = std::sqrt(squared_norm_of_lower(square.item(i), k));
      sizes[i] = scale == FactorScale::kSchatten4 ? std::sqrt(norm) : norm;
    }
  }
  return sizes;
}

// The same from M = y U^T: |G|_F^2 = tr(M M) and |G^2|_F^2 = tr(M^2 M^2). M is not symmetric, so rounding can
// leave these traces too small; no symmetric G has norms under the bounds by tr(G) that they are raised to.
template <class T>
std::vector<double> FactorUpdate<T>::sizes_by_product(const Matrices<T>& u, const Matrices<T>& y,
                                                      FactorScale scale) {
  const int64_t count = u.count, d = u.rows;
  auto m = Matrices<T>::contiguous(workspace_.downdate.reserve(count * d * d), count, d, d);
  multiply(m, y, u.transposed());
  std::vector<double> traces(count), sizes(count);
  for (int64_t i = 0; i < count; ++i) traces[i] = trace(m.item(i), d);
  if (scale == FactorScale::kSchatten4) {
    const auto square = Matrices<T>::contiguous(workspace_.square.reserve(count * d * d), count, d, d);
    multiply(square, m, m);
    m = square;
  }
  const double rank = static_cast<double>(d);
  for (int64_t i = 0; i < count; ++i) {
    const double trace_squared = traces[i] * traces[i];
    if (scale == FactorScale::kProduct) {
      sizes[i] = std::sqrt(dot(m.item(i), m.item(i), d * d));
    } else if (scale == FactorScale::kFrobenius) {
      sizes[i] = std::sqrt(std::max(trace_of_square(m.item(i), d), trace_squared / rank));
    } else {
      const double least = trace_squared * trace_squared / (rank * rank * rank);
      sizes[i] = std::sqrt(std::sqrt(std::max(trace_of_square(m.item(i), d), least)));
    }
  }
  return sizes;
}

// workspace_.inverse = C after `refine` times C <- C V, V = 5 I - 8 W + 4 W^2, W = N C, from C = I / t. All
// of them are polynomials in N, so their products are symmetric and W <- W V follows from W = N / t. Halving
// the product N C instead would take in its asymmetry, which is rounding times |N|: 10 times the error.
template <class T>
void FactorUpdate<T>::refine_inverse(const Matrices<T>& gram, const std::vector<double>& t, double c,
                                     int64_t refine) {
  const int64_t count = gram.count, k = gram.rows, size = count * k * k;
  const auto inverse = Matrices<T>::contiguous(workspace_.inverse.reserve(size), count, k, k);
  const auto ratio = Matrices<T>::contiguous(workspace_.ratio.reserve(size), count, k, k);
  const auto growth = Matrices<T>::contiguous(workspace_.growth.reserve(size), count, k, k);
  for (int64_t i = 0; i < count; ++i) {
    const T r = static_cast<T>(1 / t[i]), s = static_cast<T>(c / t[i]);
    combine_lower(ratio.item(i), r, s, gram.item(i), T(0), gram.item(i), k);
  }
  grow(growth, ratio);
  for (int64_t i = 0; i < count; ++i) {
    const T r = static_cast<T>(1 / t[i]);
    combine_lower(inverse.item(i), T(0), r, growth.item(i), T(0), growth.item(i), k);
  }
  for (int64_t step = 1; step < refine; ++step) {
    multiply_symmetric(ratio, growth);
    grow(growth, ratio);
    multiply_symmetric(inverse, growth);
  }
}

// growth = 5 I - 8 W + 4 W^2
template <class T>
void FactorUpdate<T>::grow(const Matrices<T>& growth, const Matrices<T>& ratio) {
  multiply_lower(growth, ratio, ratio);
  for (int64_t i = 0; i < ratio.count; ++i) {
    combine_lower(growth.item(i), T(5), T(-8), ratio.item(i), T(4), growth.item(i), ratio.rows);
  }
}

// a <- a b for symmetric, commuting a and b.
template <class T>
void FactorUpdate<T>::multiply_symmetric(const Matrices<T>& a, const Matrices<T>& b) {
  const int64_t k = a.rows;
  const auto product = Matrices<T>::contiguous(workspace_.square.reserve(a.count * k * k), a.count, k, k);
  multiply_lower(product, a, b);
  for (int64_t i = 0; i < a.count; ++i) {
    combine_lower(a.item(i), T(0), T(1), product.item(i), T(0), product.item(i), k);
  }
}

// X <- X / decay - weight z y^T for the pending items with a finite weight and a finite result. As z y^T is
// positive semidefinite, no element of it is larger than those on its diagonal.
template <class T>
void FactorUpdate<T>::downdate(const Batch& batch, const Matrices<T>& y, const Matrices<T>& z,
                               const std::vector<double>& weights) {
  const int64_t count = batch.x.count, d = batch.x.rows;
  const auto amount = Matrices<T>::contiguous(workspace_.downdate.reserve(count * d * d), count, d, d);
  multiply_lower(amount, z, y.transposed());
  const T keep = static_cast<T>(1 / batch.decay);
  for (int64_t i = 0; i < count; ++i) {
    T* const x = batch.x.item(i);
    const T weight = static_cast<T>(weights[i]);
    bool finite = batch.pending[i] && std::isfinite(weight);
    for (int64_t j = 0; j < d && finite; ++j) {
      finite = std::isfinite(keep * x[j * d + j] - weight * amount.item(i)[j * d + j]);
    }
    if (!finite) continue;
    combine_lower(x, T(0), keep, x, -weight, amount.item(i), d);
    batch.pending[i] = 0;
  }
}

template class FactorUpdate<float>;
template class FactorUpdate<double>;

}  // namespace kradagrad::cpu
