// Runs a plan (plan/launch.h) on the device of a tensor, in the current stream.
#pragma once

#include "../checks.h"
#include "plan/batch.h"
#include "plan/gpu.h"
#include "plan/launch.h"

namespace kradagrad::cuda {

// The dtypes of gradients, parameters and roots that the kernels read; moments are float32.
inline const DTypes kKernelViewDTypes = {ScalarType::Float, ScalarType::BFloat16};

TensorInfo info(const Tensor& tensor);
TensorInfos infos(const Tensors& tensors);

template <class T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// Sets the device guard, allocates the plan's scratch memory through torch, uploads its table unless an equal
// one is on the device, and launches. Throws, naming `op`, if a launch fails.
void run(const char* op, const Tensor& like, Plan plan);

Gpu gpu_of(const Tensor& like);

}  // namespace kradagrad::cuda
