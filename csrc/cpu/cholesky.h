// The solve of the factor update, through a Cholesky decomposition.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "products.h"

namespace kradagrad::cpu {

// F <- F U^-1 with H = U^T U, for upper triangular F [count, d, d] and symmetric H [count, d, d], both
// contiguous. Only the upper triangle of H is read; H is overwritten. If a pivot of item i is not positive
// and finite, `failed[i]` is set, and the item's F and H are undefined. `scratch` grows as needed.
template <class T>
void solve_by_cholesky(const MatrixBatch<T>& f, const MatrixBatch<T>& h, uint8_t* failed, Buffer<T>& scratch);

}  // namespace kradagrad::cpu
