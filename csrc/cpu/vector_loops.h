// Loops over contiguous memory, vectorised for several instruction sets. Sums are kept in double, in an order
// that depends on the length alone.
#pragma once

#include <cstdint>

namespace kradagrad::cpu {

double dot(const float* x, const float* y, int64_t size);
double dot(const double* x, const double* y, int64_t size);

// out = a x + b y; `out` may be x or y.
void weighted_sum(float* out, float a, const float* x, float b, const float* y, int64_t size);
void weighted_sum(double* out, double a, const double* x, double b, const double* y, int64_t size);

// out = a x
void scale(float* out, float a, const float* x, int64_t size);
void scale(double* out, double a, const double* x, int64_t size);

// p = keep p - rate min(max(a x, -largest), largest)
void bounded_step(float* p, float keep, float rate, float a, float largest, const float* x, int64_t size);
void bounded_step(double* p, double keep, double rate, double a, double largest, const double* x,
                  int64_t size);

// Rounds values by chance to a neighbouring bfloat16 number (apply_updates_ in
// kradagrad_ext/backends/base.py). `chances`: the bits to be mixed, from start_chances and add_chances.
void round_by_chance(float* values, const uint32_t* chances, int64_t size);
void round_by_chance(double* values, const uint32_t* chances, int64_t size);

// add_residuals adds residuals, which are integers, to the float32 bits of bfloat16 parameters;
// split_residuals splits the new values into bfloat16 numbers and residuals.
void add_residuals(float* values, const float* residuals, int64_t size);
void add_residuals(double* values, const double* residuals, int64_t size);
void split_residuals(float* values, float* residuals, int64_t size);
void split_residuals(double* values, double* residuals, int64_t size);

// The bits that round_by_chance mixes: start_chances sets them from the old values of bfloat16 parameters,
// add_chances adds those that the updates are made of.
void start_chances(uint32_t* chances, uint32_t count, const float* old, int64_t size);
void start_chances(uint32_t* chances, uint32_t count, const double* old, int64_t size);
void add_chances(uint32_t* chances, const float* made_of, int64_t size);
void add_chances(uint32_t* chances, const double* made_of, int64_t size);

// out = c[0] d / (sqrt(c[1] v) + c[2]), or 0 where the denominator is not positive
void adaptive_update(float* out, const float* d, const float* v, const float* c, int64_t size);
void adaptive_update(double* out, const double* d, const double* v, const double* c, int64_t size);

// v = decay v + weight g^2; returns the squared norm of the adaptive update of d with the new v.
double average_squares(float* v, float decay, float weight, const float* g, const float* d, const float* c,
                       int64_t size);
double average_squares(double* v, double decay, double weight, const double* g, const double* d,
                       const double* c, int64_t size);

}  // namespace kradagrad::cpu
