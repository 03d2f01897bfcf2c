// Decompositions of one contiguous matrix by torch, through the stable ABI's dispatcher.
#pragma once

#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace kradagrad::cpu {

// Eigenvalues or singular values [d], and their vectors, the columns of a matrix [d, d] of any strides.
struct Spectrum {
  torch::stable::Tensor values, vectors;
};

// Ascending eigenvalues, and eigenvectors, of a symmetric matrix [d, d] whose upper triangle is read. Throws
// if the decomposition does not converge.
template <class T>
Spectrum eigh(T* x, int64_t d);

// Descending singular values, and left vectors, of a matrix [d, d]. Throws if the decomposition does not
// converge.
template <class T>
Spectrum svd(T* f, int64_t d);

// F <- U, the upper triangle with U U^T = F F^T, by a QR decomposition of F [d, d] reversed.
template <class T>
void make_upper(T* f, int64_t d);

// F <- F R^-1 with R^T R = A^T A, by a QR decomposition of A [rows, d] that never forms A^T A.
template <class T>
void solve_by_qr(T* f, T* a, int64_t rows, int64_t d);

}  // namespace kradagrad::cpu
