// Conversion of a dtype known at run time to a type known at compile time.
#pragma once

#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>

#include <cstdint>
#include <type_traits>

namespace kradagrad::cpu {

using torch::headeronly::ScalarType;

template <class T>
constexpr ScalarType dtype_of = ScalarType::Float;
template <>
constexpr ScalarType dtype_of<double> = ScalarType::Double;

// Calls `body` with a value of the type of a factors' dtype, float32 or float64.
template <class Body>
void with_compute_type(ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::Double) {
    body(double{});
  } else {
    body(float{});
  }
}

// The same for the dtypes of parameters and gradients, float32, float64 and bfloat16, and for that of
// residuals, int16.
template <class Body>
void with_storage_type(ScalarType dtype, const Body& body) {
  if (dtype == ScalarType::BFloat16) {
    body(c10::BFloat16{});
  } else if (dtype == ScalarType::Short) {
    body(int16_t{});
  } else {
    with_compute_type(dtype, body);
  }
}

// Conversion through float for bfloat16, which has no other conversions.
template <class To, class From>
To convert(From value) {
  if constexpr (std::is_same_v<To, c10::BFloat16>) {
    return c10::BFloat16(static_cast<float>(value));
  } else {
    return static_cast<To>(value);
  }
}

}  // namespace kradagrad::cpu
