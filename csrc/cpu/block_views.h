// Blocks in the layout of their parameters: lists of strided views [*, m, n], accessed block by block.
//
// A block is packed into contiguous scratch memory of the factors' dtype before it is used, and the result is
// written back from there. All code between handles one layout, and an output may be the view that was read.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace kradagrad::cpu {

// One block [m, n] of a view; strides in elements.
struct BlockView {
  void* data;
  int64_t row_stride;
  int64_t col_stride;
  torch::headeronly::ScalarType dtype;
};

// The blocks of a list of views, in the order of the views' leading dims.
std::vector<BlockView> list_blocks(const std::vector<torch::stable::Tensor>& views);

// Copies a block into `packed` [m, n], contiguous.
template <class T>
void pack(const BlockView& block, int64_t rows, int64_t cols, T* packed);

// Copies `packed` [m, n] into a block of the same dtype.
template <class T>
void unpack(const T* packed, int64_t rows, int64_t cols, const BlockView& block);

// Returns `size` elements of a contiguous tensor, such as a root, from element `offset` on in the factors'
// dtype: the tensor's memory, or a converted copy in `scratch` if the dtype differs.
template <class T>
T* read_as(const torch::stable::Tensor& tensor, int64_t offset, int64_t size, T* scratch);

}  // namespace kradagrad::cpu
