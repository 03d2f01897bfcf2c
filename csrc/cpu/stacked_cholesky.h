// Cholesky factorisation of a batch of matrices N with matrices Y stacked below them.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "products.h"

namespace kradagrad::cpu {

// N = L L^T for N [count, k, k] and Y <- Y L^-T for upper triangular Y [count, k, k], both contiguous. Of N
// the lower triangle is read; it is overwritten. Where a pivot is not positive and finite, `failed[i]` is set
// and that item's N and Y are worthless. `scratch` grows as needed.
template <class T>
void stacked_cholesky(const Matrices<T>& n, const Matrices<T>& y, uint8_t* failed, Buffer<T>& scratch);

}  // namespace kradagrad::cpu
