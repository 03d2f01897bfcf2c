// bmm through the LibTorch stable ABI's dispatcher, on tensors made of raw memory.
#include "products.h"

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <array>

#include "dtypes.h"

namespace kradagrad::cpu {
namespace {

using torch::stable::Tensor;
namespace stable = torch::stable::detail;

constexpr int64_t kPanelRows = 64;

template <class T>
Tensor tensor_of(const Matrices<T>& m) {
  const std::array<int64_t, 3> sizes{m.count, m.rows, m.cols};
  const std::array<int64_t, 3> strides{m.batch_stride, m.row_stride, m.col_stride};
  static const torch::stable::Device cpu(torch::headeronly::DeviceType::CPU);
  return torch::stable::from_blob(m.data, {sizes.data(), 3}, {strides.data(), 3}, cpu, dtype_of<T>);
}

}  // namespace

template <class T>
void multiply(const Matrices<T>& out, const Matrices<T>& a, const Matrices<T>& b) {
  if (out.count == 0 || out.rows == 0 || out.cols == 0) return;
  if (out.col_stride != 1 && out.row_stride == 1) {  // bmm is at its best with rows contiguous in its output
    return multiply(out.transposed(), b.transposed(), a.transposed());
  }
  std::array<StableIValue, 3> stack{stable::from(tensor_of(a)), stable::from(tensor_of(b)),
                                    stable::from(tensor_of(out))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::bmm", "out", stack.data(), TORCH_ABI_VERSION));
  stable::to<Tensor>(stack[0]);  // the op returns `out` once more: releases that handle
}

template <class T>
void multiply_lower(const Matrices<T>& out, const Matrices<T>& a, const Matrices<T>& b) {
  for (int64_t begin = 0; begin < out.rows; begin += kPanelRows) {
    const int64_t end = std::min(begin + kPanelRows, out.rows);
    multiply(out.row_range(begin, end).col_range(0, end), a.row_range(begin, end), b.col_range(0, end));
  }
}

template void multiply(const Matrices<float>&, const Matrices<float>&, const Matrices<float>&);
template void multiply(const Matrices<double>&, const Matrices<double>&, const Matrices<double>&);
template void multiply_lower(const Matrices<float>&, const Matrices<float>&, const Matrices<float>&);
template void multiply_lower(const Matrices<double>&, const Matrices<double>&, const Matrices<double>&);

}  // namespace kradagrad::cpu
