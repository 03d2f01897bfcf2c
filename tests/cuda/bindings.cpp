// Binds the launch plans of csrc/cuda/plan to Python. A tensor is a tuple (address, bf16, sizes, strides).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <map>

#include "plan/elementwise_plan.h"
#include "plan/root_plan.h"
#include "plan/scalars_plan.h"
#include "plan/square_root_plan.h"

namespace py = pybind11;
using namespace kradagrad::cuda;

namespace {

using TensorTuple = std::tuple<uintptr_t, bool, std::vector<int64_t>, std::vector<int64_t>>;
using TensorTuples = std::vector<TensorTuple>;

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

TensorInfo info(const TensorTuple& tensor) {
  return {pointer<void>(std::get<0>(tensor)), std::get<1>(tensor), std::get<2>(tensor), std::get<3>(tensor)};
}

TensorInfos infos(const TensorTuples& tensors) {
  TensorInfos result;
  for (const TensorTuple& tensor : tensors) result.push_back(info(tensor));
  return result;
}

py::list launches(const Plan& plan) {
  py::list launches;
  for (const Launch& launch : plan.launches) {
    launches.append(py::make_tuple(launch.kernel, launch.grid, launch.block, launch.shared,
                                   py::bytes(launch.parameters.data(), launch.parameters.size())));
  }
  return launches;
}

py::bytes table(const Plan& plan) { return py::bytes(plan.table.data(), plan.table.size()); }

void bind(Plan& plan, uintptr_t table, uintptr_t scratch) {
  plan.bind_scratch(pointer<char>(scratch));
  plan.bind_table(pointer<char>(table));
}

const std::map<std::string, Precision> kPrecisions = {
    {"bf16x3", Precision::kBf16x3}, {"tf32x3", Precision::kTf32x3}, {"fp32", Precision::kFp32}};

SquareRootGroupTensors square_root_group(const py::dict& group) {
  const auto list = [&](const char* name) { return infos(group[name].cast<TensorTuples>()); };
  const auto one = [&](const char* name) {
    return group[name].is_none() ? TensorInfo{} : info(group[name].cast<TensorTuple>());
  };
  const auto side = [&](const char* name) -> std::optional<SquareRootSideTensors> {
    if (group[name].is_none()) return std::nullopt;
    const auto [tensor, statistics] = group[name].cast<std::pair<TensorTuple, uintptr_t>>();
    return SquareRootSideTensors{info(tensor), pointer<float>(statistics)};
  };
  return {group["blocks"].cast<int64_t>(),
          group["m"].cast<int32_t>(),
          group["n"].cast<int32_t>(),
          list("grad"),
          side("left"),
          side("right"),
          list("direction"),
          list("out"),
          one("left_root"),
          one("right_root")};
}

Plan square_root_step(const std::vector<py::dict>& groups, float decay, float weight, float damping,
                      float prior, float damped_updates, int refine, const std::string& precision,
                      bool coupled, bool update, bool precondition, uintptr_t scales, uintptr_t norms,
                      int64_t scratch_bytes, int32_t shared_limit, int32_t multiprocessors) {
  SquareRootInputs inputs{{},
                          {decay, weight, damping, prior, damped_updates, refine, coupled},
                          kPrecisions.at(precision),
                          update,
                          precondition,
                          pointer<float>(scales),
                          pointer<float>(norms),
                          {shared_limit, multiprocessors}};
  for (const py::dict& group : groups) inputs.groups.push_back(square_root_group(group));
  return plan_square_root_step(inputs, scratch_bytes);
}

RootSideTensors root_side(const py::dict& side) {
  return {side["blocks"].cast<int64_t>(),
          side["d"].cast<int32_t>(),
          side["k"].cast<int32_t>(),
          info(side["factor"].cast<TensorTuple>()),
          info(side["root"].cast<TensorTuple>()),
          pointer<float>(side["statistics"].cast<uintptr_t>()),
          pointer<float>(side["root_statistics"].cast<uintptr_t>()),
          pointer<bool>(side["active"].cast<uintptr_t>())};
}

Plan roots(const std::vector<py::dict>& sides, const std::vector<std::array<float, 3>>& polynomials,
           float bound, const std::string& precision, int64_t turn, int64_t turns, uintptr_t counter,
           int32_t shared_limit, int32_t multiprocessors) {
  RootInputs inputs{{},
                    {},
                    kPrecisions.at(precision),
                    turn,
                    turns,
                    pointer<int64_t>(counter),
                    {shared_limit, multiprocessors}};
  for (const py::dict& side : sides) inputs.sides.push_back(root_side(side));
  inputs.rule.steps = static_cast<int32_t>(polynomials.size());
  inputs.rule.bound = bound;
  for (size_t i = 0; i < polynomials.size(); ++i) {
    inputs.rule.a[i] = polynomials[i][0];
    inputs.rule.b[i] = polynomials[i][1];
    inputs.rule.c[i] = polynomials[i][2];
  }
  return plan_roots(inputs);
}

// The arguments are those of `ElementwiseCall`.
Plan elementwise(const std::string& op, const std::map<std::string, TensorTuples>& lists,
                 const std::map<std::string, uintptr_t>& tensors,
                 const std::map<std::string, double>& scalars, int32_t multiprocessors) {
  ElementwiseCall call{{}, {}, scalars};
  for (const auto& [name, list] : lists) call.lists[name] = infos(list);
  for (const auto& [name, address] : tensors) call.tensors[name] = pointer<void>(address);
  return plan_elementwise(op, call, {.multiprocessors = multiprocessors});
}

const std::map<std::string, kradagrad::Length> kLengths = {{"graft", kradagrad::Length::kGraft},
                                                           {"gradient", kradagrad::Length::kGradient},
                                                           {"rms", kradagrad::Length::kRms},
                                                           {"whitened", kradagrad::Length::kWhitened}};

Plan guard_gradients(const std::array<uintptr_t, 8>& tensors, int64_t count, double spike_limit, double beta1,
                     bool averaged, bool nesterov, double bias2, double decay2, double weight2, double eps,
                     int64_t decayed, bool by_chance, const std::string& length) {
  const kradagrad::GuardNumbers numbers{
      spike_limit, beta1,   averaged,  nesterov,           bias2, decay2, weight2,
      eps,         decayed, by_chance, kLengths.at(length)};
  return plan_guard_gradients(
      {pointer<kradagrad::Scalars<float>>(tensors[0]), pointer<float>(tensors[1]), pointer<bool>(tensors[2]),
       pointer<bool>(tensors[3]), pointer<double>(tensors[4]), pointer<float>(tensors[5]),
       pointer<bool>(tensors[6]), pointer<float>(tensors[7]), count, kradagrad::rule_of<float>(numbers)});
}

Plan scale_updates(const std::array<uintptr_t, 9>& tensors, int64_t count, double beta1, bool averaged,
                   const std::string& length) {
  const kradagrad::LengthNumbers numbers{beta1, averaged, kLengths.at(length)};
  return plan_scale_updates({pointer<float>(tensors[0]), pointer<kradagrad::Scalars<float>>(tensors[1]),
                             pointer<float>(tensors[2]), pointer<int64_t>(tensors[3]),
                             pointer<float>(tensors[4]), pointer<int64_t>(tensors[5]),
                             pointer<int64_t>(tensors[6]), pointer<float>(tensors[7]),
                             pointer<bool>(tensors[8]), count, kradagrad::rule_of<float>(numbers)});
}

}  // namespace

PYBIND11_MODULE(_plans, m) {
  py::class_<Plan>(m, "Plan")
      .def_readonly("scratch", &Plan::scratch)
      .def_property_readonly("table", &table)
      .def_property_readonly("launches", &launches)
      .def("bind", &bind);
  m.def("square_root_step", &square_root_step);
  m.def("roots", &roots);
  m.def("longest_root_side", [](const std::string& precision, int32_t shared_limit) {
    return longest_root_side(kPrecisions.at(precision), {.shared = shared_limit});
  });
  m.def("guard_gradients", &guard_gradients);
  m.def("scale_updates", &scale_updates);
  m.def("elementwise", &elementwise);
}
