#include "decompositions.h"

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string>
#include <vector>

#include "dtypes.h"

namespace kradagrad::cpu {
namespace {

using torch::stable::Tensor;
namespace stable = torch::stable::detail;

template <class T>
Tensor tensor_of(T* data, int64_t rows, int64_t cols) {
  const std::array<int64_t, 2> sizes{rows, cols}, strides{cols, 1};
  static const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(data, {sizes.data(), 2}, {strides.data(), 2}, cpu, dtype_of<T>);
}

// R [d, d] of A = Q R.
template <class T>
Tensor triangle_of_qr(T* a, int64_t rows, int64_t d) {
  std::array<StableIValue, 2> stack{stable::from(tensor_of(a, rows, d)), stable::from(std::string("r"))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linalg_qr", "", stack.data(), TORCH_ABI_VERSION));
  stable::to<Tensor>(stack[0]);  // Q, empty
  return torch::stable::contiguous(stable::to<Tensor>(stack[1]));
}

}  // namespace

template <class T>
Spectrum eigh(T* x, int64_t d) {
  // LAPACK is column-major: its lower triangle is the upper one here, and torch copies without a transpose.
  const Tensor by_columns = torch::stable::transpose(tensor_of(x, d, d), 0, 1);
  std::array<StableIValue, 2> stack{stable::from(by_columns), stable::from(std::string("L"))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linalg_eigh", "", stack.data(), TORCH_ABI_VERSION));
  return {stable::to<Tensor>(stack[0]), stable::to<Tensor>(stack[1])};
}

template <class T>
Spectrum svd(T* f, int64_t d) {
  std::array<StableIValue, 3> stack{stable::from(tensor_of(f, d, d)), stable::from(true),
                                    stable::from(std::optional<std::string>())};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linalg_svd", "", stack.data(), TORCH_ABI_VERSION));
  stable::to<Tensor>(stack[2]);  // right vectors
  return {stable::to<Tensor>(stack[1]), stable::to<Tensor>(stack[0])};
}

template <class T>
void make_upper(T* f, int64_t d) {
  std::vector<T> reversed(d * d);  // F^T with its columns reversed
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < d; ++j) reversed[i * d + j] = f[(d - 1 - j) * d + i];
  }
  const Tensor r = triangle_of_qr(reversed.data(), d, d);
  const T* const triangle = static_cast<const T*>(r.data_ptr());
  for (int64_t i = 0; i < d; ++i) {
    for (int64_t j = 0; j < d; ++j) f[i * d + j] = j < i ? T(0) : triangle[(d - 1 - j) * d + d - 1 - i];
  }
}

template <class T>
void solve_by_qr(T* f, T* a, int64_t rows, int64_t d) {
  std::array<StableIValue, 5> stack{stable::from(triangle_of_qr(a, rows, d)),
                                    stable::from(tensor_of(f, d, d)), stable::from(true), stable::from(false),
                                    stable::from(false)};
  TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::linalg_solve_triangular", "", stack.data(), TORCH_ABI_VERSION));
  const Tensor solved = torch::stable::contiguous(stable::to<Tensor>(stack[0]));
  std::copy_n(static_cast<const T*>(solved.data_ptr()), d * d, f);
}

#define INSTANTIATE(T)                   \
  template Spectrum eigh(T*, int64_t);   \
  template void make_upper(T*, int64_t); \
  template void solve_by_qr(T*, T*, int64_t, int64_t);
INSTANTIATE(float)
INSTANTIATE(double)
template Spectrum svd(double*, int64_t);

}  // namespace kradagrad::cpu
