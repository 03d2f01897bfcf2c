// The launches of the elementwise ops, which process the tensors of all parameters at once.
#pragma once

#include <map>
#include <string>

#include "../kernels/elementwise.h"
#include "batch.h"
#include "gpu.h"
#include "launch.h"

namespace kradagrad::cuda {

// The arguments of a call by their names in the op's schema; `tensors` has the addresses of single tensors.
// An empty list, or a tensor without elements, means that the tensor is missing.
struct ElementwiseCall {
  std::map<std::string, TensorInfos> lists;
  std::map<std::string, void*> tensors;
  std::map<std::string, double> scalars;
};

// Throws, naming `op`, if a parameter's tensors have more than kMaxDims dims that cannot be merged.
Plan plan_elementwise(const std::string& op, const ElementwiseCall& call, const Gpu& gpu);

}  // namespace kradagrad::cuda
