// The criteria by which plans choose kernels.
#pragma once

#include <string>

#include "../kernels/table.h"

namespace kradagrad::cuda {

// The longest side of blocks that resident kernels accept.
constexpr int32_t kResidentSide = 128;

// The name of a precision in kernels' names.
inline std::string name_of(Precision precision) {
  switch (precision) {
    case Precision::kBf16x3:
      return "bf16x3";
    case Precision::kTf32x3:
      return "tf32x3";
    default:
      return "fp32";
  }
}

}  // namespace kradagrad::cuda
