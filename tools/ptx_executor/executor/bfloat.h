// bfloat16 and tf32 as bit patterns.
#pragma once
#include <cmath>

#include "common.h"

namespace ptx {

constexpr u16 kBfloatNan = 0x7fff;

inline float from_bfloat(u32 bits) { return bits_as<float>(bits << 16); }

// Rounds to nearest, ties to even.
inline u16 to_bfloat(float value) {
  const u32 bits = bits_as<u32>(value);
  if (value != value) return kBfloatNan;
  return static_cast<u16>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// A rounded double result cannot simply be rounded again: rounding to odd in between keeps the second
// rounding right.  `error`: the rounding error of the double.
inline u16 to_bfloat(double value, double error) {
  if (value != value) return kBfloatNan;
  float odd = static_cast<float>(value);
  const double rest = std::isinf(odd) ? 0 : (value - odd) + error;
  if (rest != 0) {
    if ((rest < 0) != std::signbit(odd)) odd = std::nextafter(odd, 0.f);
    odd = bits_as<float>(bits_as<u32>(odd) | 1);
  }
  return to_bfloat(odd);
}

inline u16 bfloat_fma(u16 a, u16 b, u16 c) {
  const double product = static_cast<double>(from_bfloat(a)) * from_bfloat(b), addend = from_bfloat(c);
  const double sum = product + addend;
  if (!std::isfinite(sum)) return to_bfloat(static_cast<float>(sum));
  const double back = sum - product;
  return to_bfloat(sum, (product - (sum - back)) + (addend - back));
}

// The tensor cores ignore the low 13 bits.
inline float from_tf32(u32 bits) { return bits_as<float>(bits & 0xffffe000u); }

}  // namespace ptx
