// precondition and eigh on CUDA, on torch's own batched products and eigendecompositions.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <array>
#include <tuple>
#include <utility>

#include "../checks.h"

namespace kradagrad::cuda {
namespace {

// The blocks times a root along one of their dims.
Tensor multiply_mode(const Tensor& blocks, const Tensor& root, int64_t mode) {
  const Tensor front = torch::stable::transpose(blocks, 1, mode);
  const auto sizes = front.sizes();
  const int64_t flat[] = {sizes[0], sizes[1], -1};
  const Tensor unfolded = torch::stable::reshape(front, {flat, 3});
  const Tensor product = torch::stable::matmul(torch::stable::to(root, blocks.scalar_type()), unfolded);
  return torch::stable::transpose(torch::stable::reshape(product, sizes), 1, mode);
}

Tensor precondition(const Tensor blocks, const Tensors roots) {
  const Checks checks("precondition", blocks);
  const int64_t order = blocks.dim() - 1;
  Dims dims = {"N"};
  for (int64_t mode = 1; mode <= order; ++mode) dims.emplace_back(blocks.size(mode));
  if (order < 1) dims = {"N", "d_1", "..."};
  checks.tensor("blocks", blocks, dims, kFactorDTypes);
  checks.length("roots", roots, static_cast<size_t>(order));
  const DTypes root_dtypes = {blocks.scalar_type(), ScalarType::BFloat16};
  for (size_t i = 0; i < roots.size(); ++i) {
    if (roots[i].numel() == 0) continue;
    const int64_t d = blocks.size(static_cast<int64_t>(i) + 1);
    checks.tensor(Checks::item("roots", i), roots[i], {blocks.size(0), d, d}, root_dtypes);
  }
  Tensor product = torch::stable::clone(blocks);
  if (blocks.numel() == 0) return product;
  for (size_t i = 0; i < roots.size(); ++i) {
    if (roots[i].numel() > 0) product = multiply_mode(product, roots[i], static_cast<int64_t>(i) + 1);
  }
  return torch::stable::contiguous(product);
}

std::tuple<Tensor, Tensor> eigh(const Tensor matrices) {
  Checks("eigh", matrices).tensor("matrices", matrices, {"N", "d", "d"}, kFactorDTypes);
  std::array<StableIValue, 2> stack{torch::stable::detail::from(matrices),
                                    torch::stable::detail::from(std::string("L"))};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::linalg_eigh", "", stack.data(), TORCH_ABI_VERSION));
  return {torch::stable::detail::to<Tensor>(stack[0]), torch::stable::detail::to<Tensor>(stack[1])};
}

}  // namespace
}  // namespace kradagrad::cuda

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CUDA, m) {
  m.impl("precondition", TORCH_BOX(&kradagrad::cuda::precondition));
  m.impl("eigh", TORCH_BOX(&kradagrad::cuda::eigh));
}
