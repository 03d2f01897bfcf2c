// A plan's descriptions of tensors, and the views by which kernels find blocks.
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
  // Adds tensors [*, rows, cols] of one dtype; their leading dims, tensor by tensor, run over the blocks.
  Matrices add(const TensorInfos& tensors);

  // Adds contiguous float32 blocks [rows, cols] from block `first` on.
  Matrices add(float* data, int64_t first, int64_t rows, int64_t cols);

  // Adds the columns from `first_column` on of such blocks.
  Matrices columns(const Matrices& of, int64_t first_column);

  const std::vector<View>& all() const { return views_; }

 private:
  std::vector<View> views_;
};

}  // namespace kradagrad::cuda
