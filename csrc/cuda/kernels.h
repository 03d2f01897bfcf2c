// The kernels' host symbols by name; plans name the kernels that they launch.
#pragma once

#include <string>

namespace kradagrad::cuda {

const void* kernel_named(const std::string& name);

}  // namespace kradagrad::cuda
