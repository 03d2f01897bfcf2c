// Argument checks of every op, for every device, in one style of message:
//   kron_step_: `left[0]` must be [N, m, m] float32 or float64, got [2, 3, 3] bfloat16
// An op runs all its checks before it writes anything.
#pragma once

#include <torch/csrc/stable/device.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace kradagrad {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using Tensors = std::vector<Tensor>;
using DTypes = std::vector<ScalarType>;

inline const DTypes kFactorDTypes = {ScalarType::Float, ScalarType::Double};
inline const DTypes kViewDTypes = {ScalarType::Float, ScalarType::Double, ScalarType::BFloat16};

// One dimension of an expected shape: a known size, or a letter that stands for any.
struct Dim {
  Dim(int64_t known) : size(known), text(std::to_string(known)) {}
  Dim(const char* letter) : size(-1), text(letter) {}
  int64_t size;
  std::string text;
};
using Dims = std::vector<Dim>;

inline std::string dtype_name(ScalarType dtype) {
  switch (dtype) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Short:
      return "int16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Bool:
      return "bool";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    default:
      return "dtype number " + std::to_string(static_cast<int>(dtype));
  }
}

// The items' texts with a separator between them.
template <class Items, class Text>
std::string join(const Items& items, const char* separator, const Text& text) {
  std::string joined;
  for (const auto& item : items) {
    if (!joined.empty()) joined += separator;
    joined += text(item);
  }
  return joined;
}

// "float32, float64 or bfloat16"
inline std::string either(const DTypes& dtypes) {
  const std::string last = dtype_name(dtypes.back());
  if (dtypes.size() == 1) return last;
  return join(DTypes(dtypes.begin(), dtypes.end() - 1), ", ", dtype_name) + " or " + last;
}

inline std::string bracketed(std::string text) {
  text.insert(text.begin(), '[');
  text.push_back(']');
  return text;
}

inline std::string shape_text(torch::headeronly::IntHeaderOnlyArrayRef sizes) {
  return bracketed(join(sizes, ", ", [](int64_t size) { return std::to_string(size); }));
}

inline std::string shape_text(const Dims& dims) {
  return bracketed(join(dims, ", ", [](const Dim& dim) { return dim.text; }));
}

// The checks of one call of an op. Every tensor must be on the device of `like`.
class Checks {
 public:
  Checks(const char* op, const Tensor& like) : op_(op), device_(like.device()) {}

  [[noreturn]] void fail(const std::string& name, const std::string& expected, const std::string& got) const {
    throw std::runtime_error(std::string(op_) + ": `" + name + "` must be " + expected + ", got " + got);
  }

  // Requires a tensor of these dims and of one of `dtypes`; dims with the same letter have the same size.
  void tensor(const std::string& name, const Tensor& got, const Dims& dims, const DTypes& dtypes) const {
    const bool fits = same_shape(got, dims) && holds(dtypes, got.scalar_type());
    if (!fits) fail(name, shape_text(dims) + " " + either(dtypes), describe(got));
    if (!(got.device() == device_)) {
      fail(name, "on the device of the other tensors", "a tensor on another device");
    }
  }

  void contiguous(const std::string& name, const Tensor& got, const Dims& dims, const DTypes& dtypes) const {
    tensor(name, got, dims, dtypes);
    if (!got.is_contiguous()) fail(name, "contiguous", "strides " + shape_text(got.strides()));
  }

  // Requires a view `[*, rows, cols]` of blocks.
  void block_view(const std::string& name, const Tensor& view, const Dim& rows, const Dim& cols,
                  const DTypes& dtypes) const {
    Dims dims(std::max<int64_t>(view.dim() - 2, 1), Dim("*"));
    if (view.dim() == 2) dims.clear();
    dims.insert(dims.end(), {rows, cols});
    tensor(name, view, dims, dtypes);
  }

  // Requires views that contain `count` blocks in all.
  void block_views(const std::string& name, const Tensors& views, int64_t count, const Dim& rows,
                   const Dim& cols, const DTypes& dtypes) const {
    int64_t blocks = 0;
    for (size_t i = 0; i < views.size(); ++i) {
      block_view(item(name, i), views[i], rows, cols, dtypes);
      blocks += block_count(views[i]);
    }
    if (blocks != count) {
      fail(name, "views of " + std::to_string(count) + " blocks in all", std::to_string(blocks) + " blocks");
    }
  }

  // Requires a list of `count` tensors, or an empty one if `may_be_empty`.
  void length(const std::string& name, const Tensors& list, size_t count, bool may_be_empty = false) const {
    if (list.size() == count || (may_be_empty && list.empty())) return;
    const std::string expected = "a list of " + std::to_string(count) + " tensors";
    fail(name, expected + (may_be_empty ? ", or empty" : ""), std::to_string(list.size()));
  }

  // Requires a tensor of its parameter's shape.
  void like_parameter(const std::string& name, size_t index, const Tensor& got, const Tensor& parameter,
                      const DTypes& dtypes) const {
    Dims dims;
    for (int64_t i = 0; i < parameter.dim(); ++i) dims.emplace_back(parameter.size(i));
    tensor(item(name, index), got, dims, dtypes);
  }

  // Requires a list of one such tensor for each parameter, or an empty one if `may_be_empty`.
  void like_parameters(const std::string& name, const Tensors& list, const Tensors& parameters,
                       const DTypes& dtypes, bool may_be_empty = false) const {
    length(name, list, parameters.size(), may_be_empty);
    for (size_t i = 0; i < list.size(); ++i) like_parameter(name, i, list[i], parameters[i], dtypes);
  }

  template <class Value>
  void scalar(const std::string& name, bool in_range, const std::string& expected, const Value& got) const {
    if (in_range) return;
    std::ostringstream text;
    text << got;
    fail(name, expected, text.str());
  }

  void positive(const std::string& name, double got) const {
    scalar(name, got > 0 && std::isfinite(got), "> 0 and finite", got);
  }

  void not_negative(const std::string& name, double got) const {
    scalar(name, got >= 0 && std::isfinite(got), ">= 0 and finite", got);
  }

  static std::string item(const std::string& name, size_t index) {
    return name + "[" + std::to_string(index) + "]";
  }

  static int64_t block_count(const Tensor& view) {
    int64_t count = 1;
    for (int64_t i = 0; i + 2 < view.dim(); ++i) count *= view.size(i);
    return count;
  }

 private:
  static bool holds(const DTypes& dtypes, ScalarType dtype) {
    return std::find(dtypes.begin(), dtypes.end(), dtype) != dtypes.end();
  }

  static bool same_shape(const Tensor& got, const Dims& dims) {
    if (got.dim() != static_cast<int64_t>(dims.size())) return false;
    for (size_t i = 0; i < dims.size(); ++i) {
      const int64_t size = got.size(i);
      if (dims[i].size >= 0 && size != dims[i].size) return false;
      for (size_t j = 0; j < i; ++j) {
        if (dims[i].text != "*" && dims[i].text == dims[j].text && size != got.size(j)) return false;
      }
    }
    return true;
  }

  static std::string describe(const Tensor& got) {
    return shape_text(got.sizes()) + " " + dtype_name(got.scalar_type());
  }

  const char* op_;
  torch::stable::Device device_;
};

}  // namespace kradagrad
