// Logic, shifts and bit fields.
#include <algorithm>

#include "opcodes.h"

namespace ptx {

namespace {

template <class T>
constexpr u32 kBits = sizeof(T) * 8;

template <class T>
void add_logic(OpcodeTable& t) {
  const std::string s = ".b" + std::to_string(kBits<T>);
  t["and" + s] = lanewise([](T a, T b) -> T { return a & b; });
  t["or" + s] = lanewise([](T a, T b) -> T { return a | b; });
  t["xor" + s] = lanewise([](T a, T b) -> T { return a ^ b; });
  t["not" + s] = lanewise([](T a) -> T { return ~a; });
  t["cnot" + s] = lanewise([](T a) -> T { return a == 0; });
  t["shl" + s] = lanewise([](T a, u32 b) -> T { return b < kBits<T> ? a << b : 0; });
}

template <class T>
void add_shift_right(OpcodeTable& t, const std::string& type) {
  t["shr." + type] =
      lanewise([](T a, u32 b) -> T { return a >> std::min(b, kBits<T> - 1) >> (b >= kBits<T>); });
}

// Bits of a field past the top repeat the sign of the value, or are zero.
template <class T>
T extract(T a, u32 position, u32 length) {
  position &= 255, length &= 255;
  if (length == 0) return 0;
  const s128 whole = static_cast<s128>(a);
  const s128 shifted = position < 127 ? whole >> position : (whole < 0 ? -1 : 0);
  if (length >= kBits<T>) return static_cast<T>(shifted);
  u64 field = static_cast<u64>(shifted) & ((u64{1} << length) - 1);
  if (std::is_signed_v<T> && (field >> (length - 1) & 1)) field |= ~u64{0} << length;
  return static_cast<T>(field);
}

template <class T>
T insert(T a, T b, u32 position, u32 length) {
  position &= 255, length &= 255;
  if (length == 0 || position >= kBits<T>) return b;
  const T ones = length >= kBits<T> ? ~T{0} : (T{1} << length) - 1;
  const T mask = ones << position;
  return (a << position & mask) | (b & ~mask);
}

template <class T>
void add_fields(OpcodeTable& t) {
  using S = std::make_signed_t<T>;
  const std::string bits = std::to_string(kBits<T>);
  t["bfe.u" + bits] = lanewise([](T a, u32 p, u32 n) -> T { return extract(a, p, n); });
  t["bfe.s" + bits] = lanewise([](S a, u32 p, u32 n) -> S { return extract(a, p, n); });
  t["bfi.b" + bits] = lanewise([](T a, T b, u32 p, u32 n) -> T { return insert(a, b, p, n); });
  t["popc.b" + bits] = lanewise([](T a) -> u32 { return std::popcount(a); });
  t["clz.b" + bits] = lanewise([](T a) -> u32 { return std::countl_zero(a); });
  t["brev.b" + bits] = lanewise([](T a) -> T {
    T r = 0;
    for (u32 i = 0; i < kBits<T>; ++i) r |= (a >> i & 1) << (kBits<T> - 1 - i);
    return r;
  });
  t["bfind.u" + bits] = lanewise([](T a) -> u32 { return kBits<T> - 1 - std::countl_zero(a); });
  t["bfind.s" + bits] = lanewise([](T a) -> u32 {
    return kBits<T> - 1 - std::countl_zero(static_cast<T>(static_cast<S>(a) < 0 ? ~a : a));
  });
}

// Each bit of the result is the bit of the table that the three input bits select.
u32 lookup3(u32 a, u32 b, u32 c, u32 table) {
  u32 r = 0;
  for (int k = 0; k < 8; ++k) {
    if (table >> k & 1) r |= (k & 4 ? a : ~a) & (k & 2 ? b : ~b) & (k & 1 ? c : ~c);
  }
  return r;
}

u32 permute(u32 a, u32 b, u32 selector) {
  const u64 bytes = static_cast<u64>(b) << 32 | a;
  u32 r = 0;
  for (int k = 0; k < 4; ++k) {
    const u32 s = selector >> 4 * k & 15;
    u32 byte = bytes >> (s & 7) * 8 & 255;
    if (s & 8) byte = byte & 128 ? 255 : 0;  // replicate the sign
    r |= byte << 8 * k;
  }
  return r;
}

u64 pair(u32 low, u32 high) { return static_cast<u64>(high) << 32 | low; }

}  // namespace

void add_bit_opcodes(OpcodeTable& t) {
  add_logic<u16>(t);
  add_logic<u32>(t);
  add_logic<u64>(t);
  for (const char* kind : {"b", "u"}) {
    add_shift_right<u16>(t, kind + std::string("16"));
    add_shift_right<u32>(t, kind + std::string("32"));
    add_shift_right<u64>(t, kind + std::string("64"));
  }
  add_shift_right<s16>(t, "s16");
  add_shift_right<s32>(t, "s32");
  add_shift_right<s64>(t, "s64");
  add_fields<u32>(t);
  add_fields<u64>(t);
  t["lop3.b32"] = lanewise([](u32 a, u32 b, u32 c, u32 f) -> u32 { return lookup3(a, b, c, f); });
  t["prmt.b32"] = lanewise([](u32 a, u32 b, u32 c) -> u32 { return permute(a, b, c); });
  t["shf.l.wrap.b32"] = lanewise([](u32 a, u32 b, u32 n) -> u32 { return pair(a, b) << (n & 31) >> 32; });
  t["shf.r.wrap.b32"] = lanewise([](u32 a, u32 b, u32 n) -> u32 { return pair(a, b) >> (n & 31); });
  t["shf.l.clamp.b32"] =
      lanewise([](u32 a, u32 b, u32 n) -> u32 { return pair(a, b) << std::min(n, 32u) >> 32; });
  t["shf.r.clamp.b32"] = lanewise([](u32 a, u32 b, u32 n) -> u32 { return pair(a, b) >> std::min(n, 32u); });
}

}  // namespace ptx
