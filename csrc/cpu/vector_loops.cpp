// The multiversioned loops: one body for both dtypes, with a clone for each dtype and instruction set. The
// square root and the select vectorise only under -fno-math-errno and -fno-trapping-math, which change no
// value.
#include "vector_loops.h"

#include <cmath>

#include "multiversion.h"

namespace kradagrad::cpu {
namespace {

constexpr int kLanes = 32;  // independent sums, so that a loop vectorises without reordering any of them

template <class T>
KRADAGRAD_INLINE double dot_body(const T* x, const T* y, int64_t size) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      lanes[lane] += static_cast<double>(x[i + lane]) * static_cast<double>(y[i + lane]);
    }
  }
  double sum = 0;
  for (; i < size; ++i) sum += static_cast<double>(x[i]) * static_cast<double>(y[i]);
  for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

template <class T>
KRADAGRAD_INLINE void weighted_sum_body(T* out, T a, const T* x, T b, const T* y, int64_t size) {
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) out[i] = a * x[i] + b * y[i];
}

template <class T>
KRADAGRAD_INLINE void scale_body(T* out, T a, const T* x, int64_t size) {
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) out[i] = a * x[i];
}

template <class T>
KRADAGRAD_INLINE void bounded_step_body(T* p, T keep, T rate, T a, T largest, const T* x, int64_t size) {
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) {
    T u = a * x[i];
    u = u < -largest ? -largest : u;  // NaN stays
    u = u > largest ? largest : u;
    p[i] = keep * p[i] - rate * u;
  }
}

KRADAGRAD_INLINE uint32_t bits_of(float value) { return __builtin_bit_cast(uint32_t, value); }

template <class T>
KRADAGRAD_INLINE void add_residuals_body(T* values, const T* residuals, int64_t size) {
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) {
    // The caller may have zeroed the parameter since.
    const int32_t residual = values[i] != 0 ? static_cast<int32_t>(residuals[i]) : 0;
    const uint32_t bits = bits_of(static_cast<float>(values[i])) + residual;
    values[i] = static_cast<T>(__builtin_bit_cast(float, bits));
  }
}

template <class T>
KRADAGRAD_INLINE void split_residuals_body(T* values, T* residuals, int64_t size) {
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = bits_of(static_cast<float>(values[i]));
    const uint32_t upper = (bits + 0x8000u) & 0xffff0000u;
    residuals[i] = static_cast<T>(static_cast<int32_t>(bits - upper));
    values[i] = static_cast<T>(__builtin_bit_cast(float, upper));
  }
}

template <class T>
KRADAGRAD_INLINE void start_chances_body(uint32_t* chances, uint32_t count, const T* old, int64_t size) {
  const uint32_t seed = count * 0x9e3779b9u;
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) chances[i] = seed ^ bits_of(static_cast<float>(old[i])) * 0x85ebca77u;
}

template <class T>
KRADAGRAD_INLINE void add_chances_body(uint32_t* chances, const T* made_of, int64_t size) {
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) chances[i] ^= bits_of(static_cast<float>(made_of[i]));
}

template <class T>
KRADAGRAD_INLINE void round_by_chance_body(T* values, const uint32_t* chances, int64_t size) {
  constexpr uint32_t kLargestBf16 = 0x7f7f0000;
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = bits_of(static_cast<float>(values[i]));
    uint32_t mixed = chances[i];
    mixed = (mixed ^ mixed >> 16) * 0x85ebca6bu;
    mixed = (mixed ^ mixed >> 13) * 0xc2b2ae35u;
    mixed ^= mixed >> 16;
    const uint32_t rounded = (bits + (mixed & 0xffffu)) & 0xffff0000u;
    const T chosen = static_cast<T>(__builtin_bit_cast(float, rounded));
    values[i] = (bits & 0x7fffffffu) < kLargestBf16 ? chosen : values[i];
  }
}

template <class T>
KRADAGRAD_INLINE T adaptive(T d, T v, T c0, T c1, T c2) {
  const T denominator = std::sqrt(c1 * v) + c2;
  const T ratio = c0 * d / denominator;
  return denominator > 0 ? ratio : T(0);
}

template <class T>
KRADAGRAD_INLINE void adaptive_update_body(T* out, const T* d, const T* v, const T* c, int64_t size) {
  const T c0 = c[0], c1 = c[1], c2 = c[2];
#pragma GCC ivdep
  for (int64_t i = 0; i < size; ++i) out[i] = adaptive(d[i], v[i], c0, c1, c2);
}

template <class T>
KRADAGRAD_INLINE double average_squares_body(T* __restrict v, T decay, T weight, const T* g, const T* d,
                                             const T* c, int64_t size) {
  const T c0 = c[0], c1 = c[1], c2 = c[2];
  double lanes[kLanes] = {}, sum = 0;
  const auto update = [&](int64_t i) {
    v[i] = decay * v[i] + weight * (g[i] * g[i]);
    return static_cast<double>(adaptive(d[i], v[i], c0, c1, c2));
  };
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const double value = update(i + lane);
      lanes[lane] += value * value;
    }
  }
  for (; i < size; ++i) {
    const double value = update(i);
    sum += value * value;
  }
  for (int lane = 0; lane < kLanes; ++lane) sum += lanes[lane];
  return sum;
}

}  // namespace

#define LOOPS(T)                                                                                             \
  KRADAGRAD_MULTIVERSION double dot(const T* x, const T* y, int64_t size) { return dot_body(x, y, size); }   \
  KRADAGRAD_MULTIVERSION void weighted_sum(T* out, T a, const T* x, T b, const T* y, int64_t size) {         \
    weighted_sum_body(out, a, x, b, y, size);                                                                \
  }                                                                                                          \
  KRADAGRAD_MULTIVERSION void scale(T* out, T a, const T* x, int64_t size) { scale_body(out, a, x, size); }  \
  KRADAGRAD_MULTIVERSION void bounded_step(T* p, T keep, T rate, T a, T largest, const T* x, int64_t size) { \
    bounded_step_body(p, keep, rate, a, largest, x, size);                                                   \
  }                                                                                                          \
  KRADAGRAD_MULTIVERSION void add_residuals(T* values, const T* residuals, int64_t size) {                   \
    add_residuals_body(values, residuals, size);                                                             \
  }                                                                                                          \
  KRADAGRAD_MULTIVERSION void split_residuals(T* values, T* residuals, int64_t size) {                       \
    split_residuals_body(values, residuals, size);                                                           \
  }                                                                                                          \
  KRADAGRAD_MULTIVERSION void round_by_chance(T* values, const uint32_t* chances, int64_t size) {            \
    round_by_chance_body(values, chances, size);                                                             \
  }                                                                                                          \
  KRADAGRAD_MULTIVERSION void start_chances(uint32_t* chances, uint32_t count, const T* old, int64_t size) { \
    start_chances_body(chances, count, old, size);                                                           \
  }                                                                                                          \
  KRADAGRAD_MULTIVERSION void add_chances(uint32_t* chances, const T* made_of, int64_t size) {               \
    add_chances_body(chances, made_of, size);                                                                \
  }                                                                                                          \
  KRADAGRAD_MULTIVERSION void adaptive_update(T* out, const T* d, const T* v, const T* c, int64_t size) {    \
    adaptive_update_body(out, d, v, c, size);                                                                \
  }                                                                                                          \
  KRADAGRAD_MULTIVERSION double average_squares(T* v, T decay, T weight, const T* g, const T* d, const T* c, \
                                                int64_t size) {                                              \
    return average_squares_body(v, decay, weight, g, d, c, size);                                            \
  }
LOOPS(float)
LOOPS(double)

}  // namespace kradagrad::cpu
