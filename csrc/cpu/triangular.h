// What keeps factors triangular, one contiguous matrix at a time.
#pragma once

#include <cstdint>

namespace kradagrad::cpu {

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
