#include "batch.h"

#include <numeric>

namespace kradagrad::cuda {
namespace {

constexpr int64_t kCopyBytes = 16;  // size of an asynchronous copy

struct LeadingDim {
  int64_t size, stride;
};

// The leading dims of [*, rows, cols], contiguous dims merged, without those of size 1.
std::vector<LeadingDim> leading_dims(const TensorInfo& tensor) {
  std::vector<LeadingDim> dims;
  for (std::size_t i = 0; i + 2 < tensor.sizes.size(); ++i) {
    const LeadingDim dim{tensor.sizes[i], tensor.strides[i]};
    if (dim.size == 1) continue;
    if (!dims.empty() && dims.back().stride == dim.stride * dim.size) {
      dims.back() = {dims.back().size * dim.size, dim.stride};
    } else {
      dims.push_back(dim);
    }
  }
  return dims;
}

// Lists a tensor's views. A view has two leading dims; every index of further outer dims has a separate view.
void list_views(const TensorInfo& tensor, std::vector<LeadingDim> dims, char* data, int64_t& first,
                std::vector<View>& views) {
  if (dims.size() > 2) {
    const LeadingDim outer = dims.front();
    dims.erase(dims.begin());
    for (int64_t i = 0; i < outer.size; ++i) {
      list_views(tensor, dims, data + i * outer.stride * tensor.element_size(), first, views);
    }
    return;
  }
  while (dims.size() < 2) dims.insert(dims.begin(), {1, 0});
  const std::size_t last = tensor.sizes.size() - 1;
  views.push_back({data, first, dims[1].size, dims[0].stride, dims[1].stride, tensor.strides[last - 1],
                   tensor.strides[last]});
  first += dims[0].size * dims[1].size;
}

bool starts_aligned(const View& view, int64_t element_size) {
  const auto multiple = [&](int64_t elements) { return elements * element_size % kCopyBytes == 0; };
  return reinterpret_cast<uintptr_t>(view.data) % kCopyBytes == 0 && view.col_stride == 1 &&
         multiple(view.row_stride) && multiple(view.inner_stride) && multiple(view.outer_stride);
}

}  // namespace

Matrices Views::add(const TensorInfos& tensors) {
  Matrices result{static_cast<int32_t>(views_.size()), 0, 0, 1};
  int64_t first = 0;
  for (const TensorInfo& tensor : tensors) {
    result.bf16 = tensor.bf16;
    std::vector<View> views;
    if (std::accumulate(tensor.sizes.begin(), tensor.sizes.end(), int64_t{1}, std::multiplies<>()) > 0) {
      list_views(tensor, leading_dims(tensor), static_cast<char*>(tensor.data), first, views);
    }
    for (const View& view : views) {
      if (!starts_aligned(view, tensor.element_size())) result.aligned = 0;
      views_.push_back(view);
    }
  }
  result.views = static_cast<int32_t>(views_.size()) - result.first_view;
  return result;
}

Matrices Views::add(float* data, int64_t first, int64_t rows, int64_t cols) {
  const View view{data, first, INT64_MAX, 0, rows * cols, cols, 1};
  views_.push_back(view);
  return {static_cast<int32_t>(views_.size()) - 1, 1, 0, starts_aligned(view, sizeof(float))};
}

Matrices Views::columns(const Matrices& of, int64_t first_column) {
  View view = views_[of.first_view];
  view.data = static_cast<float*>(view.data) + first_column * view.col_stride;
  views_.push_back(view);
  return {static_cast<int32_t>(views_.size()) - 1, 1, 0, starts_aligned(view, sizeof(float))};
}

}  // namespace kradagrad::cuda
