// precondition: mode products of blocks [N, d_1, ..., d_k] with their roots [N, d_i, d_i], as a new tensor:
//
//   out[a, .., i, .., z] = sum over j of root[i, j] in[a, .., j, .., z]        for every mode with a root
//
// Modes rotate: a block seen as a matrix [d, rest] of its first mode becomes [rest, d] = block^T root^T, with
// that mode last and the next one first. After k modes all are back in place, and every product is one large
// matrix product, however short the other modes are. Threads take chunks of consecutive blocks (parallel.h),
// which are packed into scratch first.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "../checks.h"
#include "block_views.h"
#include "buffer.h"
#include "dtypes.h"
#include "operand.h"
#include "parallel.h"
#include "products.h"

namespace kradagrad::cpu {
namespace {

void check(const Checks& checks, const Tensor& blocks, const Tensors& roots) {
  if (blocks.dim() < 2) checks.tensor("blocks", blocks, {"N", "d_1", "..."}, kFactorDTypes);
  checks.tensor("blocks", blocks, Dims(blocks.dim(), "*"), kFactorDTypes);
  checks.length("roots", roots, blocks.dim() - 1);
  const DTypes dtypes = {blocks.scalar_type(), ScalarType::BFloat16};
  for (size_t i = 0; i < roots.size(); ++i) {
    if (roots[i].numel() == 0) continue;
    const int64_t d = blocks.size(i + 1);
    checks.contiguous(Checks::item("roots", i), roots[i], {blocks.size(0), d, d}, dtypes);
  }
}

// out = in^T for one matrix [rows, cols], tile by tile.
template <class T>
void transpose(T* out, const T* in, int64_t rows, int64_t cols) {
  constexpr int64_t kTile = 16;
  for (int64_t i0 = 0; i0 < rows; i0 += kTile) {
    const int64_t i1 = std::min(rows, i0 + kTile);
    for (int64_t j0 = 0; j0 < cols; j0 += kTile) {
      const int64_t j1 = std::min(cols, j0 + kTile);
      for (int64_t j = j0; j < j1; ++j) {
        for (int64_t i = i0; i < i1; ++i) out[j * rows + i] = in[i * cols + j];
      }
    }
  }
}

template <class T>
class Worker {
 public:
  Worker(const Tensor& blocks, const Tensors& roots, const Tensor& out)
      : roots_(roots), blocks_(blocks, all_dims(blocks)), out_(static_cast<T*>(out.data_ptr())) {
    for (int64_t i = 1; i < blocks.dim(); ++i) sides_.push_back(blocks.size(i));
    for (const int64_t side : sides_) block_size_ *= side;
  }

  void operator()(int64_t first, int64_t count) {
    const int64_t size = count * block_size_;
    T* from = packed_.reserve(size);
    T* to = other_.reserve(size);
    const T* const read = blocks_.read(first * block_size_, size, from);
    if (read != from) std::copy_n(read, size, from);
    for (size_t i = 0; i < sides_.size(); ++i) {
      const int64_t d = sides_[i], rest = block_size_ / d;
      if (roots_[i].numel() > 0) {
        T* const root = read_as(roots_[i], first * d * d, count * d * d, root_.reserve(count * d * d));
        multiply(Matrices<T>::contiguous(to, count, rest, d),
                 Matrices<T>::contiguous(from, count, d, rest).transposed(),
                 Matrices<T>::contiguous(root, count, d, d).transposed());
      } else {
        for (int64_t n = 0; n < count; ++n) transpose(to + n * block_size_, from + n * block_size_, d, rest);
      }
      std::swap(from, to);
    }
    std::copy_n(from, size, out_ + first * block_size_);
  }

 private:
  static std::vector<int64_t> all_dims(const Tensor& tensor) {
    std::vector<int64_t> dims;
    for (int64_t i = 0; i < tensor.dim(); ++i) dims.push_back(i);
    return dims;
  }

  const Tensors& roots_;
  Operand blocks_;
  T* out_;
  std::vector<int64_t> sides_;
  int64_t block_size_ = 1;
  Buffer<T> packed_, other_, root_;
};

Tensor precondition(const Tensor blocks, const Tensors roots) {
  check(Checks("precondition", blocks), blocks, roots);
  Tensor out = torch::stable::new_empty(blocks, blocks.sizes());
  const int64_t count = blocks.size(0);
  if (blocks.numel() == 0) return out;
  int64_t largest = blocks.numel() / count;
  for (int64_t i = 1; i < blocks.dim(); ++i) {
    if (roots[i - 1].numel() > 0) largest = std::max(largest, blocks.size(i) * blocks.size(i));
  }
  with_compute_type(blocks.scalar_type(), [&](auto type) {
    using T = decltype(type);
    for_each_chunk(count, chunk_size(count, largest * sizeof(T)),
                   [&] { return Worker<T>(blocks, roots, out); });
  });
  return out;
}

}  // namespace
}  // namespace kradagrad::cpu

STABLE_TORCH_LIBRARY_IMPL(kradagrad_ext, CPU, m) {
  m.impl("precondition", TORCH_BOX(&kradagrad::cpu::precondition));
}
