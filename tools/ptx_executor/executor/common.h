// Types and helpers shared by every part of the executor.
#pragma once
#include <bit>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

namespace ptx {

using u8 = std::uint8_t;
using u16 = std::uint16_t;
using u32 = std::uint32_t;
using u64 = std::uint64_t;
using s8 = std::int8_t;
using s16 = std::int16_t;
using s32 = std::int32_t;
using s64 = std::int64_t;
using u128 = unsigned __int128;
using s128 = __int128;

constexpr int kWarpSize = 32;
constexpr int kAsyncLane = kWarpSize;  // stands for a warp's asynchronous accesses
using Mask = u32;                      // one bit per lane of a warp
constexpr Mask kAllLanes = ~0u;

// The text is not PTX that the executor understands.
struct ParseError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// A launch cannot continue: a barrier that never completes, a jump off the end.
struct ExecutionError : std::runtime_error {
  using std::runtime_error::runtime_error;
};
// More instructions were executed than the launch allows.
struct StepLimit : std::runtime_error {
  using std::runtime_error::runtime_error;
};

template <class F>
inline void for_lanes(Mask mask, F f) {
  for (; mask; mask &= mask - 1) f(std::countr_zero(mask));
}

template <class To, class From>
inline To bits_as(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

}  // namespace ptx
