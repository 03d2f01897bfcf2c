// eigh: eigenvalues [N, d], ascending, and eigenvectors [N, d, d] of symmetric matrices [N, d, d], of which
// the lower triangles are read.
//
// torch's linalg_eigh takes the matrices of a batch one after another, with threads inside that a matrix of
// a few hundred rows cannot use. Here each thread takes a run of matrices, one at a time.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <atomic>
#include <cmath>
#include <exception>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>

#include "../checks.h"
#include "dtypes.h"
#include "parallel.h"

namespace kradagrad::cpu {
namespace {

namespace stable = torch::stable::detail;

std::pair<Tensor, Tensor> linalg_eigh(const Tensor& matrix) {
  std::array<StableIValue, 2> stack{stable::from(matrix), stable::from(std::string("L"))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linalg_eigh", "", stack.data(), TORCH_ABI_VERSION));
  return {stable::to<Tensor>(stack[0]), stable::to<Tensor>(stack[1])};
}

template <class T>
bool lower_is_finite(const T* matrix, int64_t d) {
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      if (!std::isfinite(matrix[i * d + j])) return false;
    }
  }
  return true;
}

// False where the iteration does not converge, which is all that can go wrong with a finite matrix.
bool decompose(const Tensor& matrix, Tensor values, Tensor vectors) {
  bool finite = false;
  with_compute_type(matrix.scalar_type(), [&](auto type) {
    finite = lower_is_finite(static_cast<const decltype(type)*>(matrix.data_ptr()), matrix.size(0));
  });
  if (!finite) return false;
  try {
    const auto [found_values, found_vectors] = linalg_eigh(matrix);
    torch::stable::copy_(values, found_values);
    torch::stable::copy_(vectors, found_vectors);
  } catch (const std::exception&) {
    return false;
  }
  return true;
}

std::tuple<Tensor, Tensor> eigh(const Tensor matrices) {
  const Checks checks("eigh", matrices);
  checks.tensor("matrices", matrices, {"N", "d", "d"}, kFactorDTypes);
  const int64_t count = matrices.size(0), d = matrices.size(1);
  const std::array<int64_t, 3> sizes{count, d, d};
  const Tensor packed = torch::stable::contiguous(matrices);
  Tensor values = torch::stable::new_empty(packed, {sizes.data(), 2});
  Tensor vectors = torch::stable::new_empty(packed, {sizes.data(), 3});
  if (d == 0) return {values, vectors};
  std::atomic<int64_t> failed{-1};
  for_each_chunk(count, 1, [&] {
    return [&](int64_t i, int64_t) {
      const auto item = [i](Tensor& tensor) { return torch::stable::select(tensor, 0, i); };
      if (!decompose(torch::stable::select(packed, 0, i), item(values), item(vectors))) failed = i;
    };
  });
  if (failed >= 0) {
    throw std::runtime_error("eigh: matrix " + std::to_string(failed) +
                             " is not finite, or its iteration did not converge");
  }
  return {values, vectors};
}

}  // namespace
}  // namespace kradagrad::cpu

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CPU, m) { m.impl("eigh", TORCH_BOX(&kradagrad::cpu::eigh)); }
