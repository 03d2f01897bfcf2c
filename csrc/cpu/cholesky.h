// The solve of the factor update, through a Cholesky decomposition.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "products.h"

namespace kradagrad::cpu {

// F <- F U^-1 with H = U^T U, for upper triangular F [count, d, d] and symmetric H [count, d, d], both
// contiguous. Of H the upper triangle is read; it is overwritten. Where a pivot is not positive and finite,
// `failed[i]` is set and that item's F and H are worthless. `scratch` grows as needed.
template <class T>
void solve_by_cholesky(const Matrices<T>& f, const Matrices<T>& h, uint8_t* failed, Buffer<T>& scratch);

}  // namespace kradagrad::cpu
