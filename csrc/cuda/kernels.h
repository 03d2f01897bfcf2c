// The kernels' host symbols by name, which plans launch them by.
#pragma once

#include <string>

namespace kradagrad::cuda {

const void* kernel_named(const std::string& name);

}  // namespace kradagrad::cuda
