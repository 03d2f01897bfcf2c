// ld and st.
#include <algorithm>

#include "decode.h"
#include "opcodes.h"

namespace ptx {

namespace {

constexpr u32 kMaxAccess = 32;

// Returns the lanes whose generic address points into the shared window, and makes these addresses relative.
Mask split_generic(u64* address, Mask mask) {
  Mask shared = 0;
  for_lanes(mask, [&](int lane) {
    if (address[lane] < kSharedWindow) return;
    address[lane] -= kSharedWindow;
    shared |= 1u << lane;
  });
  return shared;
}

Mask shared_lanes(Space space, u64* address, Mask mask) {
  if (space == Space::kGeneric) return split_generic(address, mask);
  return space == Space::kShared ? mask : 0;
}

void count(Machine& m, const u64* address, u32 bytes, Mask shared, Mask global, bool read) {
  if (shared) count_shared(m, address, bytes, shared);
  if (!global) return;
  u32 each[kWarpSize];
  std::fill(each, each + kWarpSize, bytes);
  count_global(m, address, each, global, read, !read);
}

template <class E>
void store_element(Machine& m, const Instruction& i, int slot, int lane, E value) {
  if (i.register_bytes == sizeof(E)) {
    m.lanes<E>(slot)[lane] = value;
    return;
  }
  const u64 wide = i.is_signed ? static_cast<u64>(static_cast<s64>(std::make_signed_t<E>(value))) : value;
  std::memcpy(m.registers + slot + lane * i.register_bytes, &wide, i.register_bytes);
}

// immediate: the Space
template <class E>
void load(Machine& m, const Instruction& i, Mask mask) {
  u64 address[kWarpSize];
  m.addresses(i.address, address);
  const u32 bytes = sizeof(E) * i.vector;
  const Mask shared = shared_lanes(static_cast<Space>(i.immediate), address, mask);
  count(m, address, bytes, shared, mask & ~shared, true);
  for_lanes(mask, [&](int lane) {
    const u8* data = shared >> lane & 1 ? m.shared_access(address[lane], bytes, lane, Use::kRead)
                                        : m.global_access(address[lane], bytes, lane, Use::kRead);
    for (int k = 0; k < i.vector; ++k) {
      E value;
      std::memset(&value, 0xff, sizeof value);  // poison
      if (data) std::memcpy(&value, data + k * sizeof(E), sizeof value);
      store_element<E>(m, i, i.op[k], lane, value);
    }
  });
}

template <class E>
void store(Machine& m, const Instruction& i, Mask mask) {
  u64 address[kWarpSize];
  m.addresses(i.address, address);
  const u32 bytes = sizeof(E) * i.vector;
  const Mask shared = shared_lanes(static_cast<Space>(i.immediate), address, mask);
  count(m, address, bytes, shared, mask & ~shared, false);
  for_lanes(mask, [&](int lane) {
    E value[kMaxAccess / sizeof(E)];
    for (int k = 0; k < i.vector; ++k)
      std::memcpy(&value[k], m.registers + i.op[k] + lane * i.register_bytes, sizeof(E));
    const u8* bits = reinterpret_cast<const u8*>(value);
    u8* data = shared >> lane & 1 ? m.shared_access(address[lane], bytes, lane, Use::kWrite, bits)
                                  : m.global_access(address[lane], bytes, lane, Use::kWrite, bits);
    if (data) {
      for (int k = 0; k < i.vector; ++k) std::memcpy(data + k * sizeof(E), &value[k], sizeof(E));
    }
  });
}

template <class E>
void load_parameter(Machine& m, const Instruction& i, Mask mask) {
  u64 address[kWarpSize];
  m.addresses(i.address, address);
  const std::vector<u8>& block = m.options.parameters;
  const u64 bytes = sizeof(E) * i.vector;
  for_lanes(mask, [&](int lane) {
    const bool inside = address[lane] <= block.size() && bytes <= block.size() - address[lane];
    if (!inside) m.report("parameter read out of bounds", lane, address[lane]);
    for (int k = 0; k < i.vector; ++k) {
      E value;
      std::memset(&value, 0xff, sizeof value);
      if (inside) std::memcpy(&value, block.data() + address[lane] + k * sizeof(E), sizeof value);
      store_element<E>(m, i, i.op[k], lane, value);
    }
  });
}

// Decodes the registers of an access; all have one width, which may exceed the element's.
template <class E>
void decode_registers(Decoder& d, Instruction& i, const std::vector<std::string_view>& names, bool load) {
  if (static_cast<int>(names.size()) != d.vector_width()) d.reject("vector width and operand differ");
  if (sizeof(E) * names.size() > kMaxAccess) d.reject("access too wide");
  const bool narrow = sizeof(E) < 8;  // the register may be wider
  int bits = sizeof(E) * 8;
  if (narrow || i.is_signed) {
    bits = sizeof(E) == 1 ? 16 : bits;
    for (std::string_view name : names) {
      if (name == "_" || name[0] != '%') continue;
      d.source(name, 0, &bits);
      break;
    }
  }
  if (bits < static_cast<int>(sizeof(E)) * 8) d.reject("register too narrow");
  for (size_t k = 0; k < names.size(); ++k) {
    i.op[k] = load ? d.destination(names[k], bits) : d.source(names[k], bits);
  }
  i.vector = static_cast<u8>(names.size());
  i.element_bytes = sizeof(E);
  i.register_bytes = static_cast<u8>(bits / 8);
}

template <class E, Space kSpace, bool kLoad, bool kSigned>
void decode_access(Decoder& d, Instruction& i) {
  d.expect(2);
  i.is_signed = kSigned;
  i.immediate = static_cast<s64>(kSpace);
  decode_registers<E>(d, i, d.vector(kLoad ? 0 : 1), kLoad);
  i.address = d.address(kLoad ? 1 : 0, kSpace);
  if (kSpace == Space::kParam) {
    const s64 last = i.address.offset + i.vector * static_cast<s64>(sizeof(E));
    if (i.address.base < 0 && (i.address.offset < 0 || last > d.program().parameter_bytes)) {
      d.reject("parameter read out of bounds");
    }
    return;
  }
  d.origin().touches_memory = true;
  d.narrow_cells(kSpace, sizeof(E) * i.vector);
}

template <class E, Space kSpace>
void add_space(OpcodeTable& t, const std::string& space) {
  constexpr bool kParameter = kSpace == Space::kParam;
  const std::string bits = std::to_string(sizeof(E) * 8);
  const Handler run = kParameter ? load_parameter<E> : load<E>;
  t["ld." + space + "b" + bits] = {"", run, decode_access<E, kSpace, true, false>};
  if (sizeof(E) < 8) t["ld." + space + "s" + bits] = {"", run, decode_access<E, kSpace, true, true>};
  if (kParameter || space == "const.") return;
  t["st." + space + "b" + bits] = {"", store<E>, decode_access<E, kSpace, false, false>};
}

template <class E>
void add_width(OpcodeTable& t) {
  add_space<E, Space::kGlobal>(t, "global.");
  add_space<E, Space::kGlobal>(t, "const.");
  add_space<E, Space::kShared>(t, "shared.");
  add_space<E, Space::kGeneric>(t, "");
  add_space<E, Space::kParam>(t, "param.");
}

}  // namespace

void add_memory_opcodes(OpcodeTable& t) {
  add_width<u8>(t);
  add_width<u16>(t);
  add_width<u32>(t);
  add_width<u64>(t);
}

}  // namespace ptx
