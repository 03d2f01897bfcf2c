#include "elementwise_plan.h"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace kradagrad::cuda {
namespace {

constexpr int kTensors = 7;
using OfParameter = std::array<const TensorInfo*, kTensors>;  // null: missing

const TensorInfo* present(const TensorInfos& list, std::size_t index) {
  if (list.empty()) return nullptr;
  for (const int64_t size : list[index].sizes) {
    if (size == 0) return nullptr;
  }
  return &list[index];
}

OfParameter tensors_of(const ElementwiseInputs& inputs, std::size_t i) {
  return {&inputs.params[i],
          present(inputs.grads, i),
          present(inputs.momenta, i),
          present(inputs.second_moments, i),
          present(inputs.directions, i),
          present(inputs.updates, i),
          present(inputs.residuals, i)};
}

struct Layout {
  std::vector<int64_t> sizes;
  std::array<std::vector<int64_t>, kTensors> strides;

  void append(int64_t size, const OfParameter& tensors, std::size_t dim) {
    sizes.push_back(size);
    for (int i = 0; i < kTensors; ++i) strides[i].push_back(tensors[i] ? tensors[i]->strides[dim] : 0);
  }

  // True if the last dim and `dim` are contiguous with each other in every tensor.
  bool continues(int64_t size, const OfParameter& tensors, std::size_t dim) const {
    for (int i = 0; i < kTensors; ++i) {
      if (tensors[i] && strides[i].back() != tensors[i]->strides[dim] * size) return false;
    }
    return true;
  }

  void merge(int64_t size, const OfParameter& tensors, std::size_t dim) {
    sizes.back() *= size;
    for (int i = 0; i < kTensors; ++i) strides[i].back() = tensors[i] ? tensors[i]->strides[dim] : 0;
  }
};

// The dims in the order of the parameter's memory, so that the last is contiguous if any is.
Layout layout_of(const OfParameter& tensors) {
  const TensorInfo& param = *tensors[0];
  std::vector<std::size_t> order;
  for (std::size_t dim = 0; dim < param.sizes.size(); ++dim) {
    if (param.sizes[dim] != 1) order.push_back(dim);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return param.strides[a] > param.strides[b]; });
  Layout layout;
  for (const std::size_t dim : order) {
    const int64_t size = param.sizes[dim];
    if (!layout.sizes.empty() && layout.continues(size, tensors, dim)) {
      layout.merge(size, tensors, dim);
    } else {
      layout.append(size, tensors, dim);
    }
  }
  if (layout.sizes.empty()) {  // one element
    layout.sizes = {1};
    for (auto& strides : layout.strides) strides = {1};
  }
  return layout;
}

bool is_flat(const Layout& layout, const OfParameter& tensors) {
  if (layout.sizes.size() != 1) return false;
  for (int i = 0; i < kTensors; ++i) {
    if (!tensors[i]) continue;
    if (layout.strides[i][0] != 1 || reinterpret_cast<uintptr_t>(tensors[i]->data) % 16 != 0) return false;
  }
  return true;
}

// The table of all parameters; `spans` is set to the number of their spans.
std::vector<Parameter> table_of(const ElementwiseInputs& inputs, int64_t& spans) {
  std::vector<Parameter> table;
  spans = 0;
  for (std::size_t p = 0; p < inputs.params.size(); ++p) {
    const OfParameter tensors = tensors_of(inputs, p);
    const Layout layout = layout_of(tensors);
    Parameter entry{};
    entry.first_span = spans;
    entry.numel = 1;
    for (const int64_t size : inputs.params[p].sizes) entry.numel *= size;
    entry.dims = static_cast<int32_t>(layout.sizes.size());
    entry.flat = is_flat(layout, tensors);
    std::copy(layout.sizes.begin(), layout.sizes.end(), entry.sizes);
    Elements* const elements[kTensors] = {&entry.param,         &entry.grad,      &entry.momentum,
                                          &entry.second_moment, &entry.direction, &entry.update,
                                          &entry.residual};
    for (int i = 0; i < kTensors; ++i) {
      if (!tensors[i]) continue;
      elements[i]->data = tensors[i]->data;
      elements[i]->bf16 = tensors[i]->bf16;
      std::copy(layout.strides[i].begin(), layout.strides[i].end(), elements[i]->strides);
    }
    table.push_back(entry);
    spans += (entry.numel + kSpan - 1) / kSpan;
  }
  return table;
}

}  // namespace

UpdateMomentsRule update_moments_rule(double beta1, double beta2, double weight2, bool nesterov) {
  const auto rounded = [](double value) { return static_cast<float>(value); };
  return {rounded(beta1), rounded(1 - beta1), rounded(beta2), rounded(weight2), nesterov};
}

void check_layouts(const char* op, const ElementwiseInputs& inputs) {
  for (std::size_t p = 0; p < inputs.params.size(); ++p) {
    const std::size_t dims = layout_of(tensors_of(inputs, p)).sizes.size();
    if (dims <= kMaxDims) continue;
    throw std::runtime_error(std::string(op) + ": `params[" + std::to_string(p) +
                             "]` and its tensors must have at most " + std::to_string(kMaxDims) +
                             " dims that are not contiguous with each other, got " + std::to_string(dims));
  }
}

Plan plan_update_moments(const ElementwiseInputs& inputs, const UpdateMomentsRule& rule, float* graft_norms,
                         const Gpu& gpu) {
  Planner planner;
  int64_t spans;
  const std::vector<Parameter> table = table_of(inputs, spans);
  const Parameter* const parameters = planner.add(table);
  const auto count = static_cast<int32_t>(table.size());
  // Elements that are not contiguous need address arithmetic, too, and thus many threads.
  const bool flat = std::all_of(table.begin(), table.end(), [](const Parameter& of) { return of.flat; });
  const int64_t ctas = flat ? std::min<int64_t>(spans, gpu.multiprocessors) : spans;
  planner.launch("update_moments", ctas, kElementThreads, 0,
                 UpdateMoments{parameters, count, rule.nesterov, rule.beta1, rule.rest1, rule.beta2,
                               rule.weight2, inputs.coefficients, inputs.active, spans, graft_norms});
  return planner.take();
}

Plan plan_apply_updates(const ElementwiseInputs& inputs, const ParameterRule& rule) {
  Planner planner;
  int64_t spans;
  const std::vector<Parameter> table = table_of(inputs, spans);
  const Parameter* const parameters = planner.add(table);
  planner.launch("apply_updates", spans, kElementThreads, 0,
                 ApplyUpdates{parameters, static_cast<int32_t>(table.size()), rule.nesterov, rule.momentum,
                              inputs.coefficients, inputs.active, rule.lr});
  return planner.take();
}

}  // namespace kradagrad::cuda
