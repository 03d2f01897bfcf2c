// Integer arithmetic.
#include <algorithm>
#include <limits>

#include "opcodes.h"

namespace ptx {

namespace {

template <class T>
using Wide = std::conditional_t<
    std::is_signed_v<T>,
    std::conditional_t<sizeof(T) == 2, s32, std::conditional_t<sizeof(T) == 4, s64, s128>>,
    std::conditional_t<sizeof(T) == 2, u32, std::conditional_t<sizeof(T) == 4, u64, u128>>>;

// Division by zero gives all ones, as the hardware does; the remainder is then the dividend.
template <class T>
T divide(T a, T b) {
  if (b == 0) return static_cast<T>(-1);
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return static_cast<T>(0 - static_cast<std::make_unsigned_t<T>>(a));
  }
  return static_cast<T>(a / b);
}

template <class T>
T remainder(T a, T b) {
  if (b == 0) return a;
  if constexpr (std::is_signed_v<T>) {
    if (b == -1) return 0;
  }
  return static_cast<T>(a % b);
}

template <class T>
void add_type(OpcodeTable& t) {
  constexpr int kBits = sizeof(T) * 8;
  const std::string s = "." + type_name<T>();
  t["add" + s] = lanewise([](T a, T b) -> T { return a + b; });
  t["sub" + s] = lanewise([](T a, T b) -> T { return a - b; });
  t["mul.lo" + s] = lanewise([](T a, T b) -> T { return static_cast<Wide<T>>(a) * b; });
  t["mul.hi" + s] = lanewise([](T a, T b) -> T { return static_cast<Wide<T>>(a) * b >> kBits; });
  t["mad.lo" + s] = lanewise([](T a, T b, T c) -> T { return static_cast<Wide<T>>(a) * b + c; });
  t["mad.hi" + s] = lanewise([](T a, T b, T c) -> T { return (static_cast<Wide<T>>(a) * b >> kBits) + c; });
  t["div" + s] = lanewise([](T a, T b) -> T { return divide(a, b); });
  t["rem" + s] = lanewise([](T a, T b) -> T { return remainder(a, b); });
  t["min" + s] = lanewise([](T a, T b) -> T { return std::min(a, b); });
  t["max" + s] = lanewise([](T a, T b) -> T { return std::max(a, b); });
  if constexpr (sizeof(T) < 8) {
    using W = Wide<T>;
    t["mul.wide" + s] = lanewise([](T a, T b) -> W { return static_cast<W>(a) * b; });
    t["mad.wide" + s] = lanewise([](T a, T b, W c) -> W { return static_cast<W>(a) * b + c; });
  }
  if constexpr (std::is_signed_v<T>) {
    t["abs" + s] = lanewise([](T a) -> T { return a < 0 ? -a : a; });
    t["neg" + s] = lanewise([](T a) -> T { return -a; });
  }
}

// add.cc and similar opcodes; `kUse` and `kSet`: they read and write the carry.
template <class T, bool kSubtract, bool kUse, bool kSet>
void carry(Machine& m, const Instruction& i, Mask mask) {
  T *d = m.lanes<T>(i.op[0]), *a = m.lanes<T>(i.op[1]), *b = m.lanes<T>(i.op[2]);
  for_lanes(mask, [&](int lane) {
    const u128 in = kUse && (m.warp->carry >> lane & 1) ? 1 : 0;
    const u128 exact =
        kSubtract ? static_cast<u128>(a[lane]) - b[lane] - in : static_cast<u128>(a[lane]) + b[lane] + in;
    d[lane] = static_cast<T>(exact);
    const Mask out = static_cast<Mask>(exact >> sizeof(T) * 8) & 1;
    if (kSet) m.warp->carry = (m.warp->carry & ~(1u << lane)) | out << lane;
  });
}

template <class T>
void add_carry(OpcodeTable& t) {
  const std::string letters = sizeof(T) == 4 ? "Rrr" : "Ddd", bits = std::to_string(sizeof(T) * 8);
  for (const char* sign : {"u", "s"}) {
    t["add.cc." + (sign + bits)] = {letters, carry<T, false, false, true>};
    t["addc." + (sign + bits)] = {letters, carry<T, false, true, false>};
    t["addc.cc." + (sign + bits)] = {letters, carry<T, false, true, true>};
    t["sub.cc." + (sign + bits)] = {letters, carry<T, true, false, true>};
    t["subc." + (sign + bits)] = {letters, carry<T, true, true, false>};
    t["subc.cc." + (sign + bits)] = {letters, carry<T, true, true, true>};
  }
}

}  // namespace

void add_integer_opcodes(OpcodeTable& t) {
  add_type<u16>(t);
  add_type<s16>(t);
  add_type<u32>(t);
  add_type<s32>(t);
  add_type<u64>(t);
  add_type<s64>(t);
  add_carry<u32>(t);
  add_carry<u64>(t);
}

}  // namespace ptx
