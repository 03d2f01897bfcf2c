// atom and red: lanes are served in lane order.
#include <algorithm>
#include <functional>

#include "decode.h"
#include "opcodes.h"

namespace ptx {

namespace {

// op: result, operand, second operand of cas; register_bytes 0: red, no result; immediate: the Space
template <class T, class F>
void atomic(Machine& m, const Instruction& i, Mask mask) {
  u64 address[kWarpSize];
  u32 bytes[kWarpSize];
  m.addresses(i.address, address);
  std::fill(bytes, bytes + kWarpSize, sizeof(T));
  Mask shared = static_cast<Space>(i.immediate) == Space::kShared ? mask : 0;
  if (static_cast<Space>(i.immediate) == Space::kGeneric) {
    for_lanes(mask, [&](int lane) {
      if (address[lane] < kSharedWindow) return;
      address[lane] -= kSharedWindow;
      shared |= 1u << lane;
    });
  }
  if (shared) count_shared(m, address, sizeof(T), shared);
  count_global(m, address, bytes, mask & ~shared, true, true);
  const T *b = m.lanes<T>(i.op[1]), *c = m.lanes<T>(i.op[2]);
  for_lanes(mask, [&](int lane) {
    u8* data = shared >> lane & 1 ? m.shared_access(address[lane], sizeof(T), lane, Use::kAtomic)
                                  : m.global_access(address[lane], sizeof(T), lane, Use::kAtomic);
    T old;
    std::memset(&old, 0xff, sizeof old);
    if (data) {
      std::memcpy(&old, data, sizeof old);
      const T value = F()(old, b[lane], c[lane]);
      std::memcpy(data, &value, sizeof value);
    }
    if (i.register_bytes) m.lanes<T>(i.op[0])[lane] = old;
  });
}

template <class T, Space kSpace, bool kResult, bool kSwap>
void decode_atomic(Decoder& d, Instruction& i) {
  constexpr int kBits = sizeof(T) * 8;
  d.expect((kResult ? 3 : 2) + (kSwap ? 1 : 0));
  if (d.vector_width() != 1) d.reject("vector atomics are not supported");
  const size_t at = kResult ? 1 : 0;
  i.register_bytes = kResult ? sizeof(T) : 0;
  i.immediate = static_cast<s64>(kSpace);
  if (kResult) i.op[0] = d.destination(0, kBits);
  i.address = d.address(at, kSpace);
  i.op[1] = d.source(at + 1, kBits);
  i.op[2] = kSwap ? d.source(at + 2, kBits) : i.op[1];
  d.origin().touches_memory = true;
  d.narrow_cells(kSpace, sizeof(T));
}

enum class Form { kReducible, kExchange, kSwap };

template <class T, Space kSpace, Form kForm, class F>
void add_in_space(OpcodeTable& t, const std::string& name, F) {
  t["atom." + name] = {"", atomic<T, F>, decode_atomic<T, kSpace, true, kForm == Form::kSwap>};
  if (kForm == Form::kReducible)
    t["red." + name] = {"", atomic<T, F>, decode_atomic<T, kSpace, false, false>};
}

template <class T, Form kForm = Form::kReducible, class F>
void add(OpcodeTable& t, const std::string& operation, const std::string& type, F f) {
  const std::string name = operation + "." + type;
  add_in_space<T, Space::kGlobal, kForm>(t, "global." + name, f);
  add_in_space<T, Space::kShared, kForm>(t, "shared." + name, f);
  add_in_space<T, Space::kGeneric, kForm>(t, name, f);
}

template <class T>
void add_order(OpcodeTable& t, const std::string& type) {
  add<T>(t, "add", type, [](T a, T b, T) -> T { return a + b; });
  add<T>(t, "min", type, [](T a, T b, T) -> T { return std::min(a, b); });
  add<T>(t, "max", type, [](T a, T b, T) -> T { return std::max(a, b); });
}

template <class T>
void add_bits(OpcodeTable& t, const std::string& type) {
  add<T>(t, "and", type, [](T a, T b, T) -> T { return a & b; });
  add<T>(t, "or", type, [](T a, T b, T) -> T { return a | b; });
  add<T>(t, "xor", type, [](T a, T b, T) -> T { return a ^ b; });
  add<T, Form::kExchange>(t, "exch", type, [](T, T b, T) -> T { return b; });
  add<T, Form::kSwap>(t, "cas", type, [](T a, T b, T c) -> T { return a == b ? c : a; });
}

}  // namespace

void add_atomic_opcodes(OpcodeTable& t) {
  add_order<u32>(t, "u32");
  add_order<s32>(t, "s32");
  add_order<u64>(t, "u64");
  add_order<s64>(t, "s64");
  add_bits<u32>(t, "b32");
  add_bits<u64>(t, "b64");
  add<float>(t, "add", "f32", [](float a, float b, float) -> float { return a + b; });
  add<double>(t, "add", "f64", [](double a, double b, double) -> double { return a + b; });
}

}  // namespace ptx
