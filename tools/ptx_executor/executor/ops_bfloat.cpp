// bfloat16 arithmetic, alone and in pairs.
#include "bfloat.h"
#include "opcodes.h"

namespace ptx {

namespace {

constexpr u16 kOne = 0x3f80, kMinusZero = 0x8000, kSign = 0x8000;

u16 add(u16 a, u16 b) { return bfloat_fma(a, kOne, b); }
u16 subtract(u16 a, u16 b) { return bfloat_fma(b, kOne | kSign, a); }
u16 multiply(u16 a, u16 b) { return bfloat_fma(a, b, kMinusZero); }
u16 absolute(u16 a) { return a & 0x7fff; }
u16 negate(u16 a) { return a ^ kSign; }
bool is_nan(u16 a) { return (a & 0x7fff) > 0x7f80; }

u16 least(u16 a, u16 b) {
  if (is_nan(a)) return is_nan(b) ? kBfloatNan : b;
  if (is_nan(b)) return a;
  const float x = from_bfloat(a), y = from_bfloat(b);
  return x == y ? a | b : x < y ? a : b;  // equal: the same bits, or zeros, where -0 is the lesser
}

u16 greatest(u16 a, u16 b) {
  if (is_nan(a) || is_nan(b)) return least(a, b);
  return least(a ^ kSign, b ^ kSign) ^ kSign;
}

template <u16 (*kFunction)(u16)>
u32 both(u32 a) {
  return kFunction(static_cast<u16>(a)) | static_cast<u32>(kFunction(a >> 16)) << 16;
}

template <u16 (*kFunction)(u16, u16)>
u32 both(u32 a, u32 b) {
  return kFunction(static_cast<u16>(a), static_cast<u16>(b)) | static_cast<u32>(kFunction(a >> 16, b >> 16))
                                                                   << 16;
}

template <u16 (*kFunction)(u16)>
void add_unary(OpcodeTable& t, const std::string& name) {
  t[name + ".bf16"] = lanewise([](u16 a) -> u16 { return kFunction(a); });
  t[name + ".bf16x2"] = lanewise([](u32 a) -> u32 { return both<kFunction>(a); });
}

template <u16 (*kFunction)(u16, u16)>
void add_binary(OpcodeTable& t, const std::string& name) {
  t[name + ".bf16"] = lanewise([](u16 a, u16 b) -> u16 { return kFunction(a, b); });
  t[name + ".bf16x2"] = lanewise([](u32 a, u32 b) -> u32 { return both<kFunction>(a, b); });
}

}  // namespace

void add_bfloat_opcodes(OpcodeTable& t) {
  add_binary<add>(t, "add");
  add_binary<subtract>(t, "sub");
  add_binary<multiply>(t, "mul");
  add_binary<least>(t, "min");
  add_binary<greatest>(t, "max");
  add_unary<absolute>(t, "abs");
  add_unary<negate>(t, "neg");
  t["fma.bf16"] = lanewise([](u16 a, u16 b, u16 c) -> u16 { return bfloat_fma(a, b, c); });
  t["fma.bf16x2"] = lanewise([](u32 a, u32 b, u32 c) -> u32 {
    const u32 high = bfloat_fma(a >> 16, b >> 16, c >> 16);
    return bfloat_fma(static_cast<u16>(a), static_cast<u16>(b), static_cast<u16>(c)) | high << 16;
  });
}

}  // namespace ptx
