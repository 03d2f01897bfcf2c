// Comparisons, selection and predicate logic.
#include <functional>

#include "bfloat.h"
#include "decode.h"
#include "opcodes.h"

namespace ptx {

namespace {

enum Combine { kAlone, kAnd, kOr, kXor };

template <class T, class F>
Mask compare(Machine& m, const Instruction& i, F f) {
  const T *a = m.lanes<T>(i.op[2]), *b = m.lanes<T>(i.op[3]);
  u32 result[kWarpSize];
  for (int lane = 0; lane < kWarpSize; ++lane) result[lane] = f(a[lane], b[lane]);
  Mask mask = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) mask |= result[lane] << lane;
  return mask;
}

Mask combine(Machine& m, const Instruction& i, Mask value) {
  if (i.immediate == kAlone) return value;
  const Mask other = m.predicate(i.op[4]);
  return i.immediate == kAnd ? value & other : i.immediate == kOr ? value | other : value ^ other;
}

// op: p, q (the result for the complement, < 0: none), a, b, c (a predicate to combine with)
template <class T, class F>
void setp(Machine& m, const Instruction& i, Mask mask) {
  const Mask result = compare<T>(m, i, F());
  const Mask first = combine(m, i, result), second = i.op[1] >= 0 ? combine(m, i, ~result) : 0;
  m.set_predicate(i.op[0], first, mask);
  if (i.op[1] >= 0) m.set_predicate(i.op[1], second, mask);
}

// Writes all ones (or 1.0f) in lanes where the comparison holds, and zero in the others.
template <class T, class F>
void set(Machine& m, const Instruction& i, Mask mask) {
  const Mask result = combine(m, i, compare<T>(m, i, F()));
  u32* d = m.lanes<u32>(i.op[0]);
  const u32 yes = i.is_signed ? bits_as<u32>(1.0f) : ~0u;
  for_lanes(mask, [&](int lane) { d[lane] = result >> lane & 1 ? yes : 0; });
}

void decode_combine(Decoder& d, Instruction& i, size_t operands) {
  i.immediate = d.has("and") ? kAnd : d.has("or") ? kOr : d.has("xor") ? kXor : kAlone;
  d.expect(i.immediate == kAlone ? operands : operands + 1);
  if (i.immediate != kAlone) i.op[4] = d.source_predicate(d.operand(operands));
}

template <int kBits>
void decode_setp(Decoder& d, Instruction& i) {
  decode_combine(d, i, 3);
  const Operand& p = d.operand(0);
  if (p.kind != Operand::Kind::kWord || p.negated) d.reject("expected a predicate");
  i.op[0] = d.destination(p.word, 1);
  i.op[1] = p.second.empty() ? -1 : d.destination(p.second, 1);
  i.op[2] = d.source(1, kBits);
  i.op[3] = d.source(2, kBits);
}

template <int kBits, bool kFloat>
void decode_set(Decoder& d, Instruction& i) {
  decode_combine(d, i, 3);
  i.is_signed = kFloat;
  i.op[0] = d.destination(0, 32);
  i.op[2] = d.source(1, kBits);
  i.op[3] = d.source(2, kBits);
}

template <class T, class F>
void add_comparison(OpcodeTable& t, const std::string& name, const std::string& type, F) {
  for (const char* combine : {"", "and.", "or.", "xor."}) {
    t["setp." + name + "." + combine + type] = {"", setp<T, F>, decode_setp<sizeof(T) * 8>};
    if constexpr (sizeof(T) == 4) {
      t["set." + name + "." + combine + "u32." + type] = {"", set<T, F>, decode_set<32, false>};
      t["set." + name + "." + combine + "s32." + type] = {"", set<T, F>, decode_set<32, false>};
      t["set." + name + "." + combine + "f32." + type] = {"", set<T, F>, decode_set<32, true>};
    }
  }
}

template <class T>
void add_equality(OpcodeTable& t, const std::string& type) {
  add_comparison<T>(t, "eq", type, [](T a, T b) { return a == b; });
  add_comparison<T>(t, "ne", type, [](T a, T b) { return a != b && a == a && b == b; });
}

template <class T>
void add_order(OpcodeTable& t, const std::string& type) {
  add_equality<T>(t, type);
  add_comparison<T>(t, "lt", type, [](T a, T b) { return a < b; });
  add_comparison<T>(t, "le", type, [](T a, T b) { return a <= b; });
  add_comparison<T>(t, "gt", type, [](T a, T b) { return a > b; });
  add_comparison<T>(t, "ge", type, [](T a, T b) { return a >= b; });
}

template <class T>
void add_unsigned_order(OpcodeTable& t, const std::string& type) {
  add_order<T>(t, type);
  add_comparison<T>(t, "lo", type, [](T a, T b) { return a < b; });
  add_comparison<T>(t, "ls", type, [](T a, T b) { return a <= b; });
  add_comparison<T>(t, "hi", type, [](T a, T b) { return a > b; });
  add_comparison<T>(t, "hs", type, [](T a, T b) { return a >= b; });
}

// The comparisons with a u hold when either operand is a NaN.
template <class T>
void add_float_order(OpcodeTable& t, const std::string& type) {
  add_order<T>(t, type);
  add_comparison<T>(t, "equ", type, [](T a, T b) { return !(a < b || a > b); });
  add_comparison<T>(t, "neu", type, [](T a, T b) { return a != b; });
  add_comparison<T>(t, "ltu", type, [](T a, T b) { return !(a >= b); });
  add_comparison<T>(t, "leu", type, [](T a, T b) { return !(a > b); });
  add_comparison<T>(t, "gtu", type, [](T a, T b) { return !(a <= b); });
  add_comparison<T>(t, "geu", type, [](T a, T b) { return !(a < b); });
  add_comparison<T>(t, "num", type, [](T a, T b) { return a == a && b == b; });
  add_comparison<T>(t, "nan", type, [](T a, T b) { return a != a || b != b; });
}

template <class T>
void selp(Machine& m, const Instruction& i, Mask mask) {
  const T *a = m.lanes<T>(i.op[1]), *b = m.lanes<T>(i.op[2]);
  T* d = m.lanes<T>(i.op[0]);
  const Mask p = m.predicate(i.op[3]);
  for (int lane = 0; lane < kWarpSize; ++lane) {
    const T value = p >> lane & 1 ? a[lane] : b[lane];
    d[lane] = mask >> lane & 1 ? value : d[lane];
  }
}

template <class F>
void predicate_logic(Machine& m, const Instruction& i, Mask mask) {
  m.set_predicate(i.op[0], F()(m.predicate(i.op[1]), m.predicate(i.op[2])), mask);
}

void predicate_not(Machine& m, const Instruction& i, Mask mask) {
  m.set_predicate(i.op[0], ~m.predicate(i.op[1]), mask);
}

void predicate_move(Machine& m, const Instruction& i, Mask mask) {
  m.set_predicate(i.op[0], m.predicate(i.op[1]), mask);
}

template <class T>
void add_slct(OpcodeTable& t, const std::string& type) {
  t["slct." + type + ".s32"] = lanewise([](T a, T b, s32 c) -> T { return c >= 0 ? a : b; });
  t["slct." + type + ".f32"] = lanewise([](T a, T b, float c) -> T { return c >= 0 ? a : b; });
}

}  // namespace

void add_predicate_opcodes(OpcodeTable& t) {
  add_equality<u16>(t, "b16");
  add_equality<u32>(t, "b32");
  add_equality<u64>(t, "b64");
  add_unsigned_order<u16>(t, "u16");
  add_unsigned_order<u32>(t, "u32");
  add_unsigned_order<u64>(t, "u64");
  add_order<s16>(t, "s16");
  add_order<s32>(t, "s32");
  add_order<s64>(t, "s64");
  add_float_order<float>(t, "f32");
  add_float_order<double>(t, "f64");
  t["selp.b16"] = {"Hhhp", selp<u16>};
  t["selp.b32"] = {"Rrrp", selp<u32>};
  t["selp.b64"] = {"Dddp", selp<u64>};
  t["and.pred"] = {"Ppp", predicate_logic<std::bit_and<Mask>>};
  t["or.pred"] = {"Ppp", predicate_logic<std::bit_or<Mask>>};
  t["xor.pred"] = {"Ppp", predicate_logic<std::bit_xor<Mask>>};
  t["not.pred"] = {"Pp", predicate_not};
  t["mov.pred"] = {"Pp", predicate_move};
  for (const char* kind : {"b", "u", "s"}) {
    add_slct<u16>(t, kind + std::string("16"));
    add_slct<u32>(t, kind + std::string("32"));
    add_slct<u64>(t, kind + std::string("64"));
  }
  add_slct<float>(t, "f32");
  add_slct<double>(t, "f64");
}

}  // namespace ptx
