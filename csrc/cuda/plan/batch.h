// Tensors as a plan sees them, and the views that kernels find blocks by.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../kernels/table.h"

namespace kradagrad::cuda {

struct TensorInfo {
  void* data;
  bool bf16;  // bfloat16, or int16 residuals, else float32
  std::vector<int64_t> sizes, strides;

  int64_t element_size() const { return bf16 ? 2 : 4; }
};

using TensorInfos = std::vector<TensorInfo>;

// Collects the views of every batch of blocks of a plan.
class Views {
 public:
  // Tensors [*, rows, cols] whose leading dims, one tensor after the other, run over the blocks. One dtype
  // for all.
  Matrices add(const TensorInfos& tensors);

  // Contiguous float32 blocks [rows, cols] from block `first` on.
  Matrices add(float* data, int64_t first, int64_t rows, int64_t cols);

  // The columns of such blocks from one on.
  Matrices columns(const Matrices& of, int64_t first_column);

  const std::vector<View>& all() const { return views_; }

 private:
  std::vector<View> views_;
};

}  // namespace kradagrad::cuda
