// Products and decompositions of triangular matrices, over batches or one matrix at a time.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "products.h"

namespace kradagrad::cpu {

// out = F^T U for upper triangular F [count, d, d], by panels: half the flops of a whole product.
template <class T>
void multiply_upper_transposed(const Matrices<T>& out, const Matrices<T>& f, const Matrices<T>& u);

// The lower triangle of out = F^T F for upper triangular F.
template <class T>
void gram_of_upper(const Matrices<T>& out, const Matrices<T>& f);

// Whether a matrix [d, d], contiguous, has nothing below its diagonal.
template <class T>
bool is_upper(const T* f, int64_t d);

// F <- U, the upper triangle with U U^T = F F^T, by a QR decomposition of F reversed; one contiguous [d, d].
template <class T>
void make_upper(T* f, int64_t d);

// F <- F R^-1 with R^T R = A^T A, by a QR decomposition of A [rows, d] that never forms A^T A; contiguous.
template <class T>
void solve_by_qr(T* f, T* a, int64_t rows, int64_t d);

}  // namespace kradagrad::cpu
