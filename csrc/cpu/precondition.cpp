// precondition: mode products of blocks [N, d_1, ..., d_k] with their roots [N, d_i, d_i], as a new tensor:
//
//   out[a, .., i, .., z] = sum over j of root[i, j] in[a, .., j, .., z]        for every mode with a root
//
// A block is a stack of `before` matrices [d_i, after] for mode i, and its root multiplies each from the
// left; the last mode, where after = 1, is one product with the root's transpose from the right. Threads take
// chunks of consecutive blocks (parallel.h), which are packed into scratch first.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>

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

// out = the product of one mode, for blocks [count, before, d, after].
template <class T>
void mode_product(T* out, T* in, T* root, int64_t count, int64_t before, int64_t d, int64_t after) {
  const auto roots = Matrices<T>::contiguous(root, count, d, d);
  if (after == 1 && before > 1) {
    multiply(Matrices<T>::contiguous(out, count, before, d), Matrices<T>::contiguous(in, count, before, d),
             roots.transposed());
  } else if (before == 1) {
    multiply(Matrices<T>::contiguous(out, count, d, after), roots,
             Matrices<T>::contiguous(in, count, d, after));
  } else {
    const int64_t size = before * d * after;
    for (int64_t i = 0; i < count; ++i) {
      Matrices<T> shared = roots.items(i, 1);
      shared.count = before;
      shared.batch_stride = 0;
      multiply(Matrices<T>::contiguous(out + i * size, before, d, after), shared,
               Matrices<T>::contiguous(in + i * size, before, d, after));
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
    int64_t before = 1, after = block_size_;
    for (size_t i = 0; i < sides_.size(); ++i) {
      const int64_t d = sides_[i];
      after /= d;
      if (roots_[i].numel() > 0) {
        T* const scratch = root_.reserve(count * d * d);
        T* const root = read_as(roots_[i], first * d * d, count * d * d, scratch);
        mode_product(to, from, root, count, before, d, after);
        std::swap(from, to);
      }
      before *= d;
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
