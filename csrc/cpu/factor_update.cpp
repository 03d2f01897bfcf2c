// The update of a chunk on one thread: products of all items, then passes item by item. Items that are not
// ready take part in the products as identities, and are never written.
#include "factor_update.h"

#include <algorithm>
#include <cmath>

#include "cholesky.h"
#include "decompositions.h"
#include "dtypes.h"
#include "symmetric.h"
#include "vector_loops.h"

namespace kradagrad::cpu {

namespace {

// True if a contiguous matrix [d, d] is zero below its diagonal.
template <class T>
bool is_upper(const T* f, int64_t d) {
  for (int64_t i = 1; i < d; ++i) {
    if (std::any_of(f + i * d, f + i * d + i, [](T value) { return value != 0; })) return false;
  }
  return true;
}

}  // namespace

template <class T>
void FactorUpdate<T>::apply(const SideArrays<T>& side, const T* scales, const Unfoldings<T>& unfoldings) {
  const int64_t count = unfoldings.u.count, d = unfoldings.u.rows, k = unfoldings.u.cols;
  items_.clear();
  for (int64_t i = 0; i < count; ++i) {
    items_.push_back(scales[i] != 0 ? prepare(side.statistics + i * kStatistics, unfoldings.squared_norms[i],
                                              unfoldings.stretches[i], d * k)
                                    : Item{});
  }
  if (std::any_of(items_.begin(), items_.end(), [](const Item& item) { return item.ready; })) {
    load(side, unfoldings);
    whiten(unfoldings);
    if (rule_.damped_updates > 0) add_damping(k);
    if (triangular()) {
      times_inverse_root();
      for (int64_t i = 0; i < count; ++i) {
        if (!failed_[i] || !items_[i].ready) continue;
        load_item(side, i, d, k);
        solve_failed_item(i, unfoldings);
      }
    } else {
      times_polynomial();
    }
  }
  store(side, scales, unfoldings);
}

// The statistics after this gradient. A block without a gradient is not ready; a non-finite one is counted.
template <class T>
typename FactorUpdate<T>::Item FactorUpdate<T>::prepare(const T* statistics, double squared_norm,
                                                        double stretch, int64_t elements) const {
  const double old = rule_.decay * statistics[kWeight], rms = statistics[kRms];
  const double mean_square = squared_norm / static_cast<double>(elements);
  const double weight = old + rule_.weight;
  const double mean = std::sqrt((old * rms * rms + rule_.weight * mean_square) / weight);
  const bool has_gradient = squared_norm != 0 && stretch != 0;
  const bool finite = std::isfinite(static_cast<T>(mean)) && std::isfinite(stretch);
  return {has_gradient && finite, has_gradient && !finite, mean, weight};
}

template <class T>
void FactorUpdate<T>::load(const SideArrays<T>& side, const Unfoldings<T>& unfoldings) {
  const int64_t count = unfoldings.u.count, d = unfoldings.u.rows, k = unfoldings.u.cols;
  f_ = MatrixBatch<T>::contiguous(scratch_.factor.reserve(count * d * d), count, d, d);
  b_ = MatrixBatch<T>::contiguous(scratch_.b.reserve(count * k * d), count, k, d);
  h_ = MatrixBatch<T>::contiguous(scratch_.h.reserve(count * d * d), count, d, d);
  for (int64_t i = 0; i < count; ++i) load_item(side, i, d, k);
}

// Loads F of an item, or a multiple of the identity if it is new.
template <class T>
void FactorUpdate<T>::load_item(const SideArrays<T>& side, int64_t i, int64_t d, int64_t k) {
  T* const f = f_.item(i);
  const bool is_new = side.statistics[i * kStatistics + kWeight] == 0;
  if (is_new || !items_[i].ready) {
    const double start = 1 / (items_[i].rms * std::sqrt(rule_.prior * static_cast<double>(k)));
    std::fill_n(f, d * d, T(0));
    for (int64_t j = 0; j < d; ++j) f[j * d + j] = items_[i].ready ? static_cast<T>(start) : T(1);
    return;
  }
  if (side.bfloat16) {
    const auto* from = static_cast<const c10::BFloat16*>(side.factor) + i * d * d;
    for (int64_t j = 0; j < d * d; ++j) f[j] = convert<T>(from[j]);
  } else {
    std::copy_n(static_cast<const T*>(side.factor) + i * d * d, d * d, f);
  }
  if (triangular() && !is_upper(f, d)) make_upper(f, d);
}

// weight s^2, the factor of B B^T, where s U has the norm of the gradient.
template <class T>
double FactorUpdate<T>::weight_of(const Unfoldings<T>& unfoldings, int64_t i) const {
  return items_[i].ready ? rule_.weight / unfoldings.stretches[i] : 0;
}

// Makes B^T, and weight s^2 B B^T in H.
template <class T>
void FactorUpdate<T>::whiten(const Unfoldings<T>& unfoldings) {
  multiply(b_, unfoldings.u.transposed(), f_, {Part::kWhole, Part::kWhole, shape()});
  traces_.clear();
  for (int64_t i = 0; i < h_.count; ++i) {
    const auto h = h_.items(i, 1), b = b_.items(i, 1);
    multiply(h, b.transposed(), b, kUpperOut, static_cast<T>(weight_of(unfoldings, i)));
    traces_.push_back(trace(h.data, h.rows));
  }
}

// H += C^T C, C = rms sqrt(damped_updates weight damping k) F. F is scaled first, since F^T F might overflow.
template <class T>
void FactorUpdate<T>::add_damping(int64_t k) {
  const int64_t count = f_.count, d = f_.rows;
  const auto damped = MatrixBatch<T>::contiguous(scratch_.damped.reserve(count * d * d), count, d, d);
  const double share = rule_.damped_updates * rule_.weight * rule_.damping * static_cast<double>(k);
  for (int64_t i = 0; i < count; ++i) {
    const double rms = items_[i].ready ? items_[i].rms : 0;
    scale(damped.item(i), static_cast<T>(rms * std::sqrt(share)), f_.item(i), d * d);
  }
  const Part transposed = triangular() ? Part::kLower : Part::kWhole;
  multiply(h_, damped.transposed(), damped, {Part::kUpper, transposed, shape()}, T(1), T(1));
}

// F <- F T^-1 with H + decay I = T^T T.
template <class T>
void FactorUpdate<T>::times_inverse_root() {
  for (int64_t i = 0; i < h_.count; ++i) add_diagonal(h_.item(i), static_cast<T>(rule_.decay), h_.rows);
  failed_.assign(h_.count, 0);
  solve_by_cholesky(f_, h_, failed_.data(), scratch_.product);
}

// The same for one item, without H: T is the R of a QR decomposition of [sqrt(decay) I; s B^T; C].
template <class T>
void FactorUpdate<T>::solve_failed_item(int64_t i, const Unfoldings<T>& unfoldings) {
  const int64_t d = f_.rows, k = unfoldings.u.cols, damped = rule_.damped_updates > 0 ? d : 0;
  items_[i].counted = true;
  if (!std::isfinite(traces_[i])) {
    items_[i].ready = false;
    return;
  }
  T* const rows = scratch_.power.reserve((d + k + damped) * d);
  std::fill_n(rows, d * d, T(0));
  for (int64_t j = 0; j < d; ++j) rows[j * d + j] = static_cast<T>(std::sqrt(rule_.decay));
  const double s = std::sqrt(weight_of(unfoldings, i));
  scale(rows + d * d, static_cast<T>(s), b_.item(i), k * d);
  if (damped > 0) std::copy_n(scratch_.damped.get() + i * d * d, d * d, rows + (d + k) * d);
  solve_by_qr(f_.item(i), rows, d + k + damped, d);
}

// out = a b for symmetric a and b that commute; both triangles of out are written.
template <class T>
void FactorUpdate<T>::multiply_symmetric(const MatrixBatch<T>& out, const MatrixBatch<T>& a,
                                         const MatrixBatch<T>& b) {
  multiply(out, a, b, kUpperOut);
  for (int64_t i = 0; i < out.count; ++i) mirror_upper(out.item(i), out.rows);
}

// F <- F q(H): coupled Newton-Schulz with minimax scaling, as `inverse_root` in backends/square_root.py. h_
// contains H without its decay I.
template <class T>
void FactorUpdate<T>::times_polynomial() {
  const int64_t count = h_.count, d = h_.rows;
  const auto matrices = [&](Buffer<T>& buffer) {
    return MatrixBatch<T>::contiguous(buffer.reserve(count * d * d), count, d, d);
  };
  auto y = h_, z = matrices(scratch_.root), polynomial = matrices(scratch_.power),
       product = matrices(scratch_.product);
  std::vector<double> floors(count), at_decay(count, 1.0);
  for (int64_t i = 0; i < count; ++i) {
    const double t = rule_.decay + std::sqrt(squared_norm_of_upper(h_.item(i), d));
    floors[i] = std::sqrt(rule_.decay / t);
    scale_upper(y.item(i), static_cast<T>(1 / t), y.item(i), d);
    add_diagonal(y.item(i), static_cast<T>(rule_.decay / t), d);
    mirror_upper(y.item(i), d);
  }
  for (int64_t step = 0; step < rule_.refine; ++step) {
    if (step > 0) multiply_symmetric(product, z, y);
    for (int64_t i = 0; i < count; ++i) {
      const double f = floors[i], s = std::sqrt(3 / (1 + f + f * f)), a = 1.5 * s, b = 0.5 * s * s * s;
      const T* const power = (step > 0 ? product : y).item(i);
      scale_upper(polynomial.item(i), static_cast<T>(-b), power, d);
      add_diagonal(polynomial.item(i), static_cast<T>(a), d);
      mirror_upper(polynomial.item(i), d);
      at_decay[i] *= a - b * f * f;
      floors[i] = std::min(1.0, f * (a - b * f * f));
    }
    if (step + 1 < rule_.refine) {
      multiply_symmetric(product, y, polynomial);
      std::swap(y, product);
    }
    if (step > 0) {
      multiply_symmetric(product, polynomial, z);
      std::swap(z, product);
    } else {
      std::swap(z, polynomial);
    }
  }
  multiply(product, f_, z);
  for (int64_t i = 0; i < count; ++i) {
    const double restored = 1 / (std::sqrt(rule_.decay) * at_decay[i]);
    scale(f_.item(i), static_cast<T>(restored), product.item(i), d * d);
  }
}

// Writes factors and statistics of the ready items whose new factor is finite; counts the other failures.
template <class T>
void FactorUpdate<T>::store(const SideArrays<T>& side, const T* scales, const Unfoldings<T>& unfoldings) {
  const int64_t count = unfoldings.u.count, d = unfoldings.u.rows;
  for (int64_t i = 0; i < count; ++i) {
    if (scales[i] == 0) continue;
    T* const statistics = side.statistics + i * kStatistics;
    Item& item = items_[i];
    const T* const f = item.ready ? f_.item(i) : nullptr;
    const auto is_finite = [&](T value) {  // in its storage dtype
      return std::isfinite(side.bfloat16 ? convert<T>(convert<c10::BFloat16>(value)) : value);
    };
    if (f && !std::all_of(f, f + d * d, is_finite)) {
      item = {false, true, 0, 0};
    }
    statistics[kFallbacks] += static_cast<T>(item.counted);
    if (!item.ready) continue;
    const double share = statistics[kWeight] * unfoldings.stretches[i] / rule_.weight;
    statistics[kWhitened] = static_cast<T>(share * traces_[i] / static_cast<double>(d));
    statistics[kWeight] = static_cast<T>(item.weight);
    statistics[kRms] = static_cast<T>(item.rms);
    if (side.bfloat16) {
      auto* const to = static_cast<c10::BFloat16*>(side.factor) + i * d * d;
      for (int64_t j = 0; j < d * d; ++j) to[j] = convert<c10::BFloat16>(f[j]);
    } else {
      std::copy_n(f, d * d, static_cast<T*>(side.factor) + i * d * d);
    }
  }
}

template class FactorUpdate<float>;
template class FactorUpdate<double>;

}  // namespace kradagrad::cpu
