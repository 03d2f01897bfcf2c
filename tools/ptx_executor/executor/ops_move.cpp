// mov with its vector forms, address conversion and parameters.
#include "decode.h"
#include "opcodes.h"

namespace ptx {

namespace {

template <class T>
void copy(Machine& m, const Instruction& i, Mask mask) {
  const T* a = m.lanes<T>(i.op[1]);
  T* d = m.lanes<T>(i.op[0]);
  for (int lane = 0; lane < kWarpSize; ++lane) d[lane] = mask >> lane & 1 ? a[lane] : d[lane];
}

// Read or write one register of `bytes` bytes in one lane.
u64 get(Machine& m, int slot, int bytes, int lane) {
  u64 value = 0;
  std::memcpy(&value, m.registers + slot + lane * bytes, bytes);
  return value;
}

void put(Machine& m, int slot, int bytes, int lane, u64 value) {
  std::memcpy(m.registers + slot + lane * bytes, &value, bytes);
}

// op[0]: the whole; op[1...]: its parts of element_bytes, lowest first
void pack(Machine& m, const Instruction& i, Mask mask) {
  for_lanes(mask, [&](int lane) {
    u64 whole = 0;
    for (int k = 0; k < i.vector; ++k) {
      whole |= get(m, i.op[1 + k], i.element_bytes, lane) << 8 * i.element_bytes * k;
    }
    put(m, i.op[0], i.register_bytes, lane, whole);
  });
}

void unpack(Machine& m, const Instruction& i, Mask mask) {
  for_lanes(mask, [&](int lane) {
    const u64 whole = get(m, i.op[0], i.register_bytes, lane);
    for (int k = 0; k < i.vector; ++k) {
      put(m, i.op[1 + k], i.element_bytes, lane, whole >> 8 * i.element_bytes * k);
    }
  });
}

template <class T>
void decode_mov(Decoder& d, Instruction& i) {
  constexpr int kBits = sizeof(T) * 8;
  d.expect(2);
  const bool to_parts = d.operand(0).kind == Operand::Kind::kVector;
  const bool from_parts = d.operand(1).kind == Operand::Kind::kVector;
  if (!to_parts && !from_parts) {
    i.op[0] = d.destination(0, kBits);
    i.op[1] = d.source(1, kBits);
    i.run = copy<T>;
    return;
  }
  if (to_parts && from_parts) d.reject("only one side may be a vector");
  const auto parts = d.vector(to_parts ? 0 : 1);
  if (kBits % parts.size() || kBits / parts.size() < 16) d.reject("bad vector width");
  const int part_bits = kBits / static_cast<int>(parts.size());
  i.vector = static_cast<u8>(parts.size());
  i.element_bytes = static_cast<u8>(part_bits / 8);
  i.register_bytes = sizeof(T);
  i.op[0] = to_parts ? d.source(1, kBits) : d.destination(0, kBits);
  for (size_t k = 0; k < parts.size(); ++k) {
    i.op[1 + k] = to_parts ? d.destination(parts[k], part_bits) : d.source(parts[k], part_bits);
  }
  i.run = to_parts ? unpack : pack;
}

}  // namespace

void add_move_opcodes(OpcodeTable& t) {
  t["mov.b16"] = {"", nullptr, decode_mov<u16>};
  t["mov.b32"] = {"", nullptr, decode_mov<u32>};
  t["mov.b64"] = {"", nullptr, decode_mov<u64>};
  t["cvta.u64"] = lanewise([](u64 a) -> u64 { return a; });
  for (const char* space : {"global", "const"}) {
    t[std::string("cvta.") + space + ".u64"] = t["cvta.u64"];
    t[std::string("cvta.to.") + space + ".u64"] = t["cvta.u64"];
  }
  t.erase("cvta.u64");
  t["cvta.shared.u64"] = lanewise([](u64 a) -> u64 { return a + kSharedWindow; });
  t["cvta.to.shared.u64"] = lanewise([](u64 a) -> u64 { return a - kSharedWindow; });
}

}  // namespace ptx
