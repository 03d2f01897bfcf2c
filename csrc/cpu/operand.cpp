// Reading and writing of strided elements by runs, on the calling thread.
#include "operand.h"

#include <algorithm>
#include <cstring>

#include "dtypes.h"

namespace kradagrad::cpu {

std::vector<int64_t> memory_order(const torch::stable::Tensor& parameter) {
  std::vector<int64_t> order;
  for (int64_t i = 0; i < parameter.dim(); ++i) {
    if (parameter.size(i) != 1) order.push_back(i);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return parameter.stride(a) > parameter.stride(b); });
  return order;
}

Operand::Operand(const torch::stable::Tensor& tensor, const std::vector<int64_t>& order)
    : data_(tensor.data_ptr()), dtype_(tensor.scalar_type()), contiguous_(true) {
  int64_t expected = 1;
  for (auto dim = order.rbegin(); dim != order.rend(); ++dim) {
    contiguous_ = contiguous_ && tensor.stride(*dim) == expected;
    expected *= tensor.size(*dim);
  }
  if (contiguous_) {
    sizes_ = {tensor.numel()};
    strides_ = {1};
    return;
  }
  for (const int64_t dim : order) {
    sizes_.push_back(tensor.size(dim));
    strides_.push_back(tensor.stride(dim));
  }
}

template <class Run>
void Operand::for_each_run(int64_t begin, int64_t size, const Run& run) const {
  const int64_t inner = static_cast<int64_t>(sizes_.size()) - 1;
  std::vector<int64_t> index(sizes_.size());
  int64_t offset = 0;
  for (int64_t i = inner, rest = begin; i >= 0; --i) {
    index[i] = rest % sizes_[i];
    rest /= sizes_[i];
    offset += index[i] * strides_[i];
  }
  for (int64_t done = 0; done < size;) {
    const int64_t length = std::min(size - done, sizes_[inner] - index[inner]);
    run(offset, strides_[inner], done, length);
    done += length;
    offset += length * strides_[inner];
    index[inner] += length;
    for (int64_t i = inner; i > 0 && index[i] == sizes_[i]; --i) {
      offset += strides_[i - 1] - sizes_[i] * strides_[i];
      index[i] = 0;
      ++index[i - 1];
    }
  }
}

template <class T>
T* Operand::read(int64_t begin, int64_t size, T* scratch) const {
  if (contiguous_ && dtype_ == dtype_of<T>) return static_cast<T*>(data_) + begin;
  with_storage_type(dtype_, [&](auto type) {
    const auto* data = static_cast<const decltype(type)*>(data_);
    for_each_run(begin, size, [&](int64_t offset, int64_t stride, int64_t position, int64_t length) {
      const auto* from = data + offset;
      T* to = scratch + position;
      if (stride == 1) {
        for (int64_t i = 0; i < length; ++i) to[i] = convert<T>(from[i]);
      } else {
        for (int64_t i = 0; i < length; ++i) to[i] = convert<T>(from[i * stride]);
      }
    });
  });
  return scratch;
}

template <class T>
void Operand::write(int64_t begin, int64_t size, const T* values) const {
  if (contiguous_ && dtype_ == dtype_of<T>) {
    T* const to = static_cast<T*>(data_) + begin;
    if (to != values) std::memcpy(to, values, size * sizeof(T));
    return;
  }
  with_storage_type(dtype_, [&](auto type) {
    using Stored = decltype(type);
    auto* data = static_cast<Stored*>(data_);
    for_each_run(begin, size, [&](int64_t offset, int64_t stride, int64_t position, int64_t length) {
      Stored* to = data + offset;
      const T* from = values + position;
      if (stride == 1) {
        for (int64_t i = 0; i < length; ++i) to[i] = convert<Stored>(from[i]);
      } else {
        for (int64_t i = 0; i < length; ++i) to[i * stride] = convert<Stored>(from[i]);
      }
    });
  });
}

template float* Operand::read(int64_t, int64_t, float*) const;
template double* Operand::read(int64_t, int64_t, double*) const;
template void Operand::write(int64_t, int64_t, const float*) const;
template void Operand::write(int64_t, int64_t, const double*) const;

}  // namespace kradagrad::cpu
