// The rules by which a step updates one matrix's scalars, for CPU and GPU; kradagrad_ext/backends/base.py has
// the formulas.
#pragma once

#include <cmath>
#include <cstdint>
#include <limits>
#include <type_traits>

#ifdef __CUDACC__
#define KRADAGRAD_EITHER __host__ __device__ __forceinline__
#else
#define KRADAGRAD_EITHER inline
#endif

namespace kradagrad {

constexpr int kCoefficients = 10;  // c0 to c9 of a matrix, or of a parameter that is one matrix
constexpr int kSpan = 4096;        // elements of a span, whose grafting update has a separate norm
constexpr int kGradientDecay = 7;  // c7: weight decay added to gradients; c8: to updates, c9: decoupled

// The columns of a matrix's scalars (kradagrad_ext/backends/scalars.py).
template <class T>
struct Scalars {
  T steps, mean_square, usual, in_a_row, spikes, skipped, fallbacks, ratio, unit;
};
constexpr int kScalars = sizeof(Scalars<float>) / sizeof(float);

enum class Length : int32_t { kGraft, kGradient, kRms, kWhitened };

constexpr int kMostSpikes = 2;
constexpr double kUsualKept = 0.97467943448089638, kUsualTaken = 0.22360679774997896;  // of 0.95, 0.05
constexpr double kRmsLength = 0.2;
constexpr double kLargestMove = 10;
constexpr double kSpent = 0.5;
constexpr double kUnitsApart = 1099511627776.0;  // 2^40

// The scalar arguments of guard_gradients_.
struct GuardNumbers {
  double spike_limit, beta1;
  bool averaged, nesterov;
  double bias2, decay2, weight2, eps;
  int64_t decayed;
  bool by_chance;
  Length length;
};

// The same in T, in the form in which a matrix is observed.
template <class T>
struct GuardRule {
  T spike_limit;
  T log_beta1, log_bias2;  // 0: no bias correction
  T lead;                  // 1 with Nesterov momentum, which looks one step ahead
  T decay2, weight2, eps;
  T largest;
  int32_t decayed;
  int32_t by_chance;
};

// The scalar arguments of scale_updates_.
struct LengthNumbers {
  double beta1;
  bool averaged;
  Length length;
};

template <class T>
struct LengthRule {
  Length length;
  int32_t averaged;
  T noise;  // ratio of a momentum to the usual gradient below which updates are shorter
};

template <class T>
GuardRule<T> rule_of(const GuardNumbers& in) {
  const auto log_of = [](double beta) { return static_cast<T>(beta > 0 ? std::log(beta) : 0); };
  const double bound = in.averaged ? kLargestMove : kLargestMove / (1 - in.beta1);
  const bool is_bounded = in.length != Length::kGradient;
  return {static_cast<T>(in.spike_limit),
          in.averaged ? log_of(in.beta1) : T(0),
          log_of(in.bias2),
          static_cast<T>(in.nesterov),
          static_cast<T>(in.decay2),
          static_cast<T>(in.weight2),
          static_cast<T>(in.eps),
          is_bounded ? static_cast<T>(bound) : T(INFINITY),
          static_cast<int32_t>(in.decayed),
          in.by_chance};
}

template <class T>
LengthRule<T> rule_of(const LengthNumbers& in) {
  return {in.length, in.averaged, static_cast<T>(kSpent * std::sqrt((1 - in.beta1) / (1 + in.beta1)))};
}

// 1 / (1 - beta^steps) without cancellation.
template <class T>
KRADAGRAD_EITHER T without_bias(T log_beta, T steps) {
  return log_beta == 0 ? T(1) : -1 / std::expm1(steps * log_beta);
}

// 2^floor(log2 size), limited so that T represents it and its reciprocal exactly.
template <class T>
KRADAGRAD_EITHER T power_of_two_below(T size) {
  constexpr int kLeast = std::numeric_limits<T>::min_exponent - 1;
  int exponent = std::ilogb(size);
  exponent = exponent < kLeast ? kLeast : exponent > -kLeast ? -kLeast : exponent;
  return std::scalbn(T(1), exponent);
}

// Gives a matrix a new unit if it has none, or if its unit is too far from its gradients; returns c4.
template <class T>
KRADAGRAD_EITHER T renew_unit(Scalars<T>& s, T weight_decay, const GuardRule<T>& rule, bool& restarts) {
  constexpr T kApart = T(kUnitsApart);
  constexpr T kLargest = std::is_same_v<T, float> ? T(0x1p60) : T(0x1p500);
  const T old = s.unit > 0 ? s.unit : T(1);
  const T of_moment = std::sqrt(s.mean_square) * old;
  T size = s.usual > of_moment ? s.usual : of_moment;
  if (!(size > 0)) return 1;
  if (rule.decayed == kGradientDecay && weight_decay / kApart > size) size = weight_decay / kApart;
  const T unit = power_of_two_below(size);
  T shift = old / unit;
  if (s.unit > 0 && shift < kApart && shift > 1 / kApart) return 1;
  if (shift > kLargest) shift = kLargest;
  if (shift < 1 / kLargest) shift = 1 / kLargest;
  s.unit = unit;
  s.mean_square *= shift * shift;
  restarts = true;
  return shift;
}

// Updates the scalars with a gradient of this root mean square; returns c3, and sets c4 and `restarts`.
template <class T>
KRADAGRAD_EITHER T guard_gradient(Scalars<T>& s, T rms, T weight_decay, const GuardRule<T>& rule, T& shift,
                                  bool& restarts) {
  const T usual = s.usual, largest = rule.spike_limit * usual;
  const bool is_known = usual > 0, is_large = is_known && rms > largest;
  const bool is_spike = is_large && s.in_a_row < kMostSpikes;
  restarts = is_large && !is_spike;
  s.steps += 1;
  s.spikes += is_spike;
  s.in_a_row = is_spike ? s.in_a_row + 1 : T(0);
  if (rms > 0) {
    const T counted = rms < largest ? rms : largest;  // so that frequent large gradients become usual
    const bool is_mean = is_known && !restarts;
    s.usual = is_mean ? std::hypot(T(kUsualKept) * usual, T(kUsualTaken) * counted) : rms;
  }
  shift = renew_unit(s, weight_decay, rule, restarts);
  const T unit = s.unit > 0 ? s.unit : T(1);
  const T scale = is_spike ? usual / unit / rms : 1 / unit;
  const T scaled_rms = scale * rms;
  s.mean_square = rule.decay2 * s.mean_square + rule.weight2 * scaled_rms * scaled_rms;
  return scale;
}

// One matrix of guard_gradients_: its scalars s and coefficients c.
template <class T>
KRADAGRAD_EITHER void guard_matrix(Scalars<T>& s, T* c, bool& active, bool& restarts, double norm, T numel,
                                   bool present, T weight_decay, const GuardRule<T>& rule) {
  T scale = 0, shift = 1;
  restarts = false;
  active = present && norm < INFINITY;
  if (active) {
    const T rms = static_cast<T>(norm / std::sqrt(static_cast<double>(numel)));
    scale = guard_gradient(s, rms, weight_decay, rule, shift, restarts);
  } else if (present) {
    s.skipped += 1;
  }
  const T steps = s.steps > 1 ? s.steps : T(1);  // for a matrix without a gradient so far, any finite value
  const T c1 = without_bias(rule.log_bias2, steps);
  c[0] = without_bias(rule.log_beta1, steps + rule.lead);
  c[1] = c1;
  c[2] = rule.eps * std::sqrt(c1 * s.mean_square);
  c[3] = scale;
  c[4] = shift;
  c[5] = rule.largest;
  c[6] = rule.by_chance ? s.steps : T(0);
  for (int i = kGradientDecay; i < kCoefficients; ++i) c[i] = i == rule.decayed ? weight_decay : T(0);
}

// One matrix of scale_updates_.
template <class T>
KRADAGRAD_EITHER void scale_matrix(T* c, Scalars<T>& s, T graft, T update, T numel, bool preconditioned,
                                   const LengthRule<T>& rule) {
  constexpr T kInfinity = INFINITY;
  const T corrected = c[0];
  T graft_scale = rule.averaged ? corrected : corrected * c[3];
  T scale;
  if (rule.length == Length::kRms || rule.length == Length::kWhitened) {
    const T rms = std::sqrt(graft / numel), noise = rule.noise * s.usual / s.unit;
    const T left = noise > 0 && !(rms / noise >= 1) ? rms / noise : T(1);
    const T length = T(kRmsLength) * left;
    scale = rule.length == Length::kWhitened ? corrected : length / std::sqrt(update / numel);
    graft_scale *= rms > 0 ? length / rms : T(0);
  } else {
    scale = std::sqrt(graft) / std::sqrt(update);
  }
  if (rule.length == Length::kGradient) {
    const T unit = s.unit > 0 ? s.unit : T(1);
    scale *= unit;
    graft_scale *= unit;
  }
  const bool sound = preconditioned && update > 0 && update < kInfinity && scale < kInfinity;
  c[0] = graft_scale;
  c[3] = sound ? scale : T(NAN);
  s.fallbacks += preconditioned && !sound && graft > 0;
  if (sound) s.ratio = scale;
}

}  // namespace kradagrad
