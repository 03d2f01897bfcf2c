// Packing and unpacking of strided blocks, on the calling thread.
#include "block_views.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "dtypes.h"

namespace kradagrad::cpu {
namespace {

constexpr int64_t kTile = 16;

int64_t element_size(ScalarType dtype) {
  int64_t size = 0;
  with_storage_type(dtype, [&](auto type) { size = sizeof(type); });
  return size;
}

// dst[i, j] = src[i, j] for any strides: row by row if both have contiguous rows, else through transposed
// tiles, so that reads and writes each follow their contiguous dim.
template <class To, class From>
void copy_matrix(To* dst, int64_t dst_row, int64_t dst_col, const From* src, int64_t src_row, int64_t src_col,
                 int64_t rows, int64_t cols) {
  if (dst_col != 1 && dst_row == 1) {
    return copy_matrix(dst, dst_col, dst_row, src, src_col, src_row, cols, rows);
  }
  if (dst_col == 1 && src_col == 1) {
    for (int64_t i = 0; i < rows; ++i) {
      To* to = dst + i * dst_row;
      const From* from = src + i * src_row;
      if constexpr (std::is_same_v<To, From>) {
        std::memcpy(to, from, cols * sizeof(To));
      } else {
        for (int64_t j = 0; j < cols; ++j) to[j] = convert<To>(from[j]);
      }
    }
    return;
  }
  for (int64_t i0 = 0; i0 < rows; i0 += kTile) {
    const int64_t height = std::min(rows - i0, kTile);
    for (int64_t j0 = 0; j0 < cols; j0 += kTile) {
      const int64_t width = std::min(cols - j0, kTile);
      To tile[kTile * kTile];  // transposed
      for (int64_t j = 0; j < width; ++j) {
        const From* from = src + i0 * src_row + (j0 + j) * src_col;
        for (int64_t i = 0; i < height; ++i) tile[j * kTile + i] = convert<To>(from[i * src_row]);
      }
      for (int64_t i = 0; i < height; ++i) {
        To* to = dst + (i0 + i) * dst_row + j0 * dst_col;
        for (int64_t j = 0; j < width; ++j) to[j * dst_col] = tile[j * kTile + i];
      }
    }
  }
}

}  // namespace

std::vector<BlockView> list_blocks(const std::vector<torch::stable::Tensor>& views) {
  std::vector<BlockView> blocks;
  for (const auto& view : views) {
    const int64_t leading = view.dim() - 2;
    const int64_t bytes = element_size(view.scalar_type());
    char* const data = static_cast<char*>(view.data_ptr());
    std::vector<int64_t> index(leading, 0);
    int64_t count = 1;
    for (int64_t i = 0; i < leading; ++i) count *= view.size(i);
    for (int64_t block = 0; block < count; ++block) {
      int64_t offset = 0;
      for (int64_t i = 0; i < leading; ++i) offset += index[i] * view.stride(i);
      blocks.push_back(
          {data + offset * bytes, view.stride(leading), view.stride(leading + 1), view.scalar_type()});
      for (int64_t i = leading - 1; i >= 0 && ++index[i] == view.size(i); --i) index[i] = 0;
    }
  }
  return blocks;
}

template <class T>
void pack(const BlockView& block, int64_t rows, int64_t cols, T* packed) {
  with_storage_type(block.dtype, [&](auto type) {
    copy_matrix(packed, cols, 1, static_cast<const decltype(type)*>(block.data), block.row_stride,
                block.col_stride, rows, cols);
  });
}

template <class T>
void unpack(const T* packed, int64_t rows, int64_t cols, const BlockView& block) {
  copy_matrix(static_cast<T*>(block.data), block.row_stride, block.col_stride, packed, cols, int64_t{1}, rows,
              cols);
}

template <class T>
T* read_as(const torch::stable::Tensor& tensor, int64_t offset, int64_t size, T* scratch) {
  T* data = scratch;
  with_storage_type(tensor.scalar_type(), [&](auto type) {
    auto* from = static_cast<decltype(type)*>(tensor.data_ptr()) + offset;
    if constexpr (std::is_same_v<decltype(type), T>) {
      data = from;
    } else {
      for (int64_t i = 0; i < size; ++i) scratch[i] = convert<T>(from[i]);
    }
  });
  return data;
}

template void pack(const BlockView&, int64_t, int64_t, float*);
template void pack(const BlockView&, int64_t, int64_t, double*);
template void unpack(const float*, int64_t, int64_t, const BlockView&);
template void unpack(const double*, int64_t, int64_t, const BlockView&);
template float* read_as(const torch::stable::Tensor&, int64_t, int64_t, float*);
template double* read_as(const torch::stable::Tensor&, int64_t, int64_t, double*);

}  // namespace kradagrad::cpu
