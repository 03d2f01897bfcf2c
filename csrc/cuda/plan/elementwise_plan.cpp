#include "elementwise_plan.h"

#include <algorithm>
#include <array>
#include <stdexcept>

namespace kradagrad::cuda {
namespace {

constexpr int kTensors = 7;
using OfParameter = std::array<const TensorInfo*, kTensors>;  // null: missing

// The names of the lists whose tensors fill an entry of the table, in the order of `Parameter`; null: no
// list. An op whose lists have other names maps them onto these tensors.
using Lists = std::array<const char*, kTensors>;
constexpr Lists kLists = {"params",     "grads",   "momenta",  "second_moments",
                          "directions", "updates", "residuals"};

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

void check_layout(const std::string& op, const std::string& list, std::size_t index, const Layout& layout) {
  if (layout.sizes.size() <= kMaxDims) return;
  throw std::runtime_error(op + ": `" + list + "[" + std::to_string(index) +
                           "]` and its tensors must have at most " + std::to_string(kMaxDims) +
                           " dims that are not contiguous with each other, got " +
                           std::to_string(layout.sizes.size()));
}

Parameter entry_of(const OfParameter& tensors, const Layout& layout, int64_t first_span) {
  Parameter entry{};
  entry.first_span = first_span;
  entry.numel = 1;
  for (const int64_t size : tensors[0]->sizes) entry.numel *= size;
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
  return entry;
}

// A call's arguments, and the table of its parameters.
class Arguments {
 public:
  Arguments(const std::string& op, const ElementwiseCall& call, const Lists& names = kLists) : call_(call) {
    std::array<const TensorInfos*, kTensors> lists;
    for (int i = 0; i < kTensors; ++i) {
      const auto list = names[i] ? call.lists.find(names[i]) : call.lists.end();
      lists[i] = list == call.lists.end() || list->second.empty() ? nullptr : &list->second;
    }
    const std::size_t count = lists[0] ? lists[0]->size() : 0;
    for (std::size_t p = 0; p < count; ++p) {
      OfParameter tensors;
      for (int i = 0; i < kTensors; ++i) tensors[i] = lists[i] ? present((*lists[i])[p]) : nullptr;
      tensors[0] = &(*lists[0])[p];  // the others are like it
      const Layout layout = layout_of(tensors);
      check_layout(op, names[0], p, layout);
      table_.push_back(entry_of(tensors, layout, spans_));
      spans_ += (table_.back().numel + kSpan - 1) / kSpan;
    }
  }

  const std::vector<Parameter>& table() const { return table_; }
  int32_t count() const { return static_cast<int32_t>(table_.size()); }
  int64_t spans() const { return spans_; }

  bool all_flat() const {
    return std::all_of(table_.begin(), table_.end(), [](const Parameter& of) { return of.flat; });
  }

  double scalar(const char* name) const { return call_.scalars.at(name); }
  float rounded(const char* name) const { return static_cast<float>(scalar(name)); }
  bool flag(const char* name) const { return scalar(name) != 0; }

  template <class T>
  T* tensor(const char* name) const {
    return static_cast<T*>(call_.tensors.at(name));
  }

 private:
  static const TensorInfo* present(const TensorInfo& tensor) {
    const bool is_empty = std::find(tensor.sizes.begin(), tensor.sizes.end(), 0) != tensor.sizes.end();
    return is_empty ? nullptr : &tensor;
  }

  const ElementwiseCall& call_;
  std::vector<Parameter> table_;
  int64_t spans_ = 0;
};

Plan plan_update_moments(const std::string& op, const ElementwiseCall& call, const Gpu& gpu) {
  const Arguments in(op, call);
  Planner planner;
  const Parameter* const parameters = planner.add(in.table());
  // Elements that are not contiguous need address arithmetic, too, and thus many threads.
  const int64_t ctas = in.all_flat() ? std::min<int64_t>(in.spans(), gpu.multiprocessors) : in.spans();
  const auto rest1 = static_cast<float>(1 - in.scalar("beta1"));  // in float it would lose digits
  planner.launch("update_moments", ctas, kElementThreads, 0,
                 UpdateMoments{parameters, in.count(), in.flag("nesterov"), in.rounded("beta1"), rest1,
                               in.rounded("beta2"), in.rounded("weight2"), in.tensor<float>("coefficients"),
                               in.tensor<bool>("active"), in.spans(), in.tensor<float>("graft_norms")});
  return planner.take();
}

Plan plan_apply_updates(const std::string& op, const ElementwiseCall& call, const Gpu&) {
  const Arguments in(op, call);
  Planner planner;
  const Parameter* const parameters = planner.add(in.table());
  planner.launch(
      "apply_updates", in.spans(), kElementThreads, 0,
      ApplyUpdates{parameters, in.count(), in.flag("nesterov"), in.rounded("momentum"),
                   in.tensor<float>("coefficients"), in.tensor<bool>("active"), in.tensor<float>("lr")});
  return planner.take();
}

using MakePlan = Plan (*)(const std::string&, const ElementwiseCall&, const Gpu&);

const std::map<std::string, MakePlan> kPlans = {
    {"update_moments_", &plan_update_moments},
    {"apply_updates_", &plan_apply_updates},
};

}  // namespace

Plan plan_elementwise(const std::string& op, const ElementwiseCall& call, const Gpu& gpu) {
  return kPlans.at(op)(op, call, gpu);
}

}  // namespace kradagrad::cuda
