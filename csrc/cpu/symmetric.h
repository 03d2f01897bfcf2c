// Passes over one symmetric matrix [n, n] of which only the lower triangle (with the diagonal) is read.
#pragma once

#include <cstdint>

namespace kradagrad::cpu {

// out = diagonal I + a x + b y, both triangles written from the lower ones of x and y, so `out` is symmetric
// to the bit. `out` may be x or y.
void combine_lower(float* out, float diagonal, float a, const float* x, float b, const float* y, int64_t n);
void combine_lower(double* out, double diagonal, double a, const double* x, double b, const double* y,
                   int64_t n);

// Copies the lower triangle to the upper one.
template <class T>
void mirror_lower(T* x, int64_t n) {
  combine_lower(x, T(0), T(1), x, T(0), x, n);
}

// |x|_F^2
double squared_norm_of_lower(const float* x, int64_t n);
double squared_norm_of_lower(const double* x, int64_t n);

template <class T>
double trace(const T* x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += x[i * n + i];
  return sum;
}

}  // namespace kradagrad::cpu
