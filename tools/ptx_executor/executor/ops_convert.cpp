// cvt.  Integer operands may be in registers wider than their type.
#include <algorithm>
#include <cmath>
#include <limits>

#include "bfloat.h"
#include "decode.h"
#include "opcodes.h"

namespace ptx {

namespace {

struct Nearest {
  static double apply(double a) { return std::nearbyint(a); }
};
struct Zero {
  static double apply(double a) { return std::trunc(a); }
};
struct Down {
  static double apply(double a) { return std::floor(a); }
};
struct Up {
  static double apply(double a) { return std::ceil(a); }
};

// Saturates; a NaN gives 0, or only the top bit if either type has 64 bits.
template <class D, class S, class Rounding>
D to_integer(S a) {
  using L = std::numeric_limits<D>;
  if (a != a) return sizeof(D) == 8 || sizeof(S) == 8 ? static_cast<D>(u64{1} << (sizeof(D) * 8 - 1)) : 0;
  const double rounded = Rounding::apply(static_cast<double>(a));
  if (rounded <= static_cast<double>(L::min())) return L::min();
  // The first value that is too large is a power of two, exact in double.
  if (rounded >= std::ldexp(1.0, L::digits)) return L::max();
  return static_cast<D>(rounded);
}

template <class D, class S, class Rounding>
void add_to_integer(OpcodeTable& t, const std::string& how) {
  t["cvt." + how + "." + type_name<D>() + "." + type_name<S>()] =
      lanewise([](S a) -> D { return to_integer<D, S, Rounding>(a); });
}

template <class D, class S>
void add_real_integer(OpcodeTable& t) {
  add_to_integer<D, S, Nearest>(t, "rni");
  add_to_integer<D, S, Zero>(t, "rzi");
  add_to_integer<D, S, Down>(t, "rmi");
  add_to_integer<D, S, Up>(t, "rpi");
  // The host rounds to nearest, ties to even.
  t["cvt.rn." + type_name<S>() + "." + type_name<D>()] = lanewise([](D a) -> S { return static_cast<S>(a); });
}

template <class S>
void add_real(OpcodeTable& t) {
  add_real_integer<s16, S>(t);
  add_real_integer<u16, S>(t);
  add_real_integer<s32, S>(t);
  add_real_integer<u32, S>(t);
  add_real_integer<s64, S>(t);
  add_real_integer<u64, S>(t);
  const std::string s = "." + type_name<S>() + "." + type_name<S>();
  t["cvt.rni" + s] = lanewise([](S a) -> S { return Nearest::apply(a); });
  t["cvt.rzi" + s] = lanewise([](S a) -> S { return Zero::apply(a); });
  t["cvt.rmi" + s] = lanewise([](S a) -> S { return Down::apply(a); });
  t["cvt.rpi" + s] = lanewise([](S a) -> S { return Up::apply(a); });
  t["cvt" + s] = lanewise([](S a) -> S { return a; });
  t["cvt.sat" + s] = lanewise([](S a) -> S { return a >= 1 ? S{1} : a > 0 ? a : S{0}; });
}

// Converts between integers; the result is sign- or zero-extended to its register.
template <class D, class S, bool kSaturate>
void integer(Machine& m, const Instruction& i, Mask mask) {
  for_lanes(mask, [&](int lane) {
    S value;
    std::memcpy(&value, m.registers + i.op[1] + lane * i.element_bytes, sizeof value);
    D narrow = static_cast<D>(value);
    if (kSaturate) {
      const s128 low = std::numeric_limits<D>::min(), high = std::numeric_limits<D>::max();
      narrow = static_cast<D>(std::clamp(static_cast<s128>(value), low, high));
    }
    const u64 wide = static_cast<u64>(narrow);
    std::memcpy(m.registers + i.op[0] + lane * i.register_bytes, &wide, i.register_bytes);
  });
}

template <class D, class S>
void decode_integer(Decoder& d, Instruction& i) {
  d.expect(2);
  int to = sizeof(D) * 8, from = sizeof(S) * 8;
  // 8-bit values are in 16-bit or wider registers.
  i.op[0] = d.destination(d.word(0), 0, &to);
  const bool number = d.word(1)[0] != '%';
  i.op[1] = number ? d.source(1, std::max(from, 16)) : d.source(d.word(1), 0, &from);
  if (number) from = std::max(from, 16);
  if (to < static_cast<int>(sizeof(D)) * 8 || from < static_cast<int>(sizeof(S)) * 8 || to == 1 ||
      from == 1) {
    d.reject("register too narrow");
  }
  i.register_bytes = static_cast<u8>(to / 8);
  i.element_bytes = static_cast<u8>(from / 8);
}

template <class D, class S>
void add_integer(OpcodeTable& t) {
  const std::string s = type_name<D>() + "." + type_name<S>();
  t["cvt." + s] = {"", integer<D, S, false>, decode_integer<D, S>};
  t["cvt.sat." + s] = {"", integer<D, S, true>, decode_integer<D, S>};
}

template <class D>
void add_from_integers(OpcodeTable& t) {
  add_integer<D, u8>(t);
  add_integer<D, s8>(t);
  add_integer<D, u16>(t);
  add_integer<D, s16>(t);
  add_integer<D, u32>(t);
  add_integer<D, s32>(t);
  add_integer<D, u64>(t);
  add_integer<D, s64>(t);
}

}  // namespace

void add_convert_opcodes(OpcodeTable& t) {
  add_real<float>(t);
  add_real<double>(t);
  add_from_integers<u8>(t);
  add_from_integers<s8>(t);
  add_from_integers<u16>(t);
  add_from_integers<s16>(t);
  add_from_integers<u32>(t);
  add_from_integers<s32>(t);
  add_from_integers<u64>(t);
  add_from_integers<s64>(t);
  t["cvt.f64.f32"] = lanewise([](float a) -> double { return a; });
  t["cvt.rn.f32.f64"] = lanewise([](double a) -> float { return static_cast<float>(a); });
  t["cvt.f32.bf16"] = lanewise([](u16 a) -> float { return from_bfloat(a); });
  t["cvt.f64.bf16"] = lanewise([](u16 a) -> double { return from_bfloat(a); });
  t["cvt.rn.bf16.f32"] = lanewise([](float a) -> u16 { return to_bfloat(a); });
  t["cvt.rz.bf16.f32"] = lanewise([](float a) -> u16 { return a != a ? kBfloatNan : bits_as<u32>(a) >> 16; });
  // The first operand goes to the upper half.
  t["cvt.rn.bf16x2.f32"] =
      lanewise([](float a, float b) -> u32 { return static_cast<u32>(to_bfloat(a)) << 16 | to_bfloat(b); });
  // Rounds to nearest, ties away from zero.
  t["cvt.rna.tf32.f32"] = lanewise([](float a) -> u32 {
    const u32 bits = bits_as<u32>(a);
    return std::isfinite(a) ? (bits + 0x1000) & 0xffffe000u : bits;
  });
}

}  // namespace ptx
