#pragma once

#include <cstdint>

namespace kradagrad::cuda {

// Properties of a GPU that plans use: bytes of shared memory that a CTA may have, and multiprocessors.
struct Gpu {
  int32_t shared = 163 << 10;
  int32_t multiprocessors = 108;
};

}  // namespace kradagrad::cuda
