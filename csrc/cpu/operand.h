// Tensors of one parameter as the elementwise ops see them: flat, in the parameter's memory order, and in the
// compute dtype.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <cstdint>
#include <vector>

namespace kradagrad::cpu {

// The dims of a parameter from the largest stride to the smallest, so that a transposed or channels-last
// parameter is traversed in memory order. Dims of size 1 are left out.
std::vector<int64_t> memory_order(const torch::stable::Tensor& parameter);

// One tensor, traversed in the order that `memory_order` returns for its parameter.
class Operand {
 public:
  Operand(const torch::stable::Tensor& tensor, const std::vector<int64_t>& order);

  // Returns the elements [begin, begin + size): the tensor's memory if it is contiguous in this order and of
  // dtype T, else a copy in `scratch`.
  template <class T>
  T* read(int64_t begin, int64_t size, T* scratch) const;

  // Stores the values that `read` returned, or others. Nothing is copied if they are in the tensor's memory.
  template <class T>
  void write(int64_t begin, int64_t size, const T* values) const;

 private:
  // Calls run(offset, stride, position, length) for every run along the innermost dim.
  template <class Run>
  void for_each_run(int64_t begin, int64_t size, const Run& run) const;

  void* data_;
  torch::headeronly::ScalarType dtype_;
  bool contiguous_;
  std::vector<int64_t> sizes_, strides_;
};

}  // namespace kradagrad::cpu
