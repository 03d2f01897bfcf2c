// cp.async: the data arrive at the wait that covers the copy, and are poison until then.
#include <algorithm>

#include "decode.h"
#include "opcodes.h"
#include "races.h"

namespace ptx {

namespace {

constexpr u8 kPoison = 0xff;

void set_pending(Machine& m, const PendingCopy& copy, bool pending) {
  if (!m.options.races) return;
  for (u32 at = 0; at < copy.bytes; at += 1u << m.program.shared_cell_shift) {
    m.shared.shadow.at(copy.destination + at)->pending = pending;
  }
}

// immediate: bytes to write; op[0]: slot of the bytes to read (the rest is zero), < 0: all
void issue(Machine& m, const Instruction& i, Mask mask) {
  u64 to[kWarpSize], from[kWarpSize];
  u32 bytes[kWarpSize];
  m.addresses(i.address, to);
  m.addresses(i.source, from);
  const u32 size = static_cast<u32>(i.immediate);
  Mask reading = 0;
  for_lanes(mask, [&](int lane) {
    bytes[lane] = i.op[0] < 0 ? size : std::min(size, m.lanes<u32>(i.op[0])[lane]);
    if (bytes[lane]) {
      reading |= 1u << lane;
      m.global_access(from[lane], bytes[lane], lane, Use::kRead, nullptr, size);
    }
    u8* data = m.shared_access(to[lane], size, lane, Use::kWrite);
    if (!data) return;
    std::memset(data, kPoison, size);
    m.warp->copies.push_back({static_cast<u32>(to[lane]), from[lane], static_cast<u8>(size),
                              static_cast<u8>(bytes[lane]), static_cast<u8>(lane), m.warp->committed[lane],
                              m.ip});
    set_pending(m, m.warp->copies.back(), true);
  });
  count_global(m, from, bytes, reading, true, false);
  const u64 global_bytes = m.counters.instructions[m.ip].bytes;
  count_shared(m, to, size, mask);
  m.counters.instructions[m.ip].bytes = global_bytes;  // counts the bytes read, not the zeros
}

void commit(Machine& m, const Instruction&, Mask mask) {
  for_lanes(mask, [&](int lane) { ++m.warp->committed[lane]; });
}

void land(Machine& m, const PendingCopy& copy) {
  u8 data[16] = {};
  // The hardware may read the source at any time up to the wait, so the wait checks it again.
  const BufferState* state = copy.source_bytes ? m.find_buffer(copy.source, copy.source_bytes) : nullptr;
  const int wait = m.ip;
  m.ip = copy.instruction;
  if (state) {
    const u8* source = m.global_access(copy.source, copy.source_bytes, copy.lane, Use::kRead, nullptr, 1);
    std::memcpy(data, source, copy.source_bytes);
  } else if (copy.source_bytes) {
    std::memset(data, kPoison, copy.source_bytes);
  }
  set_pending(m, copy, false);
  if (u8* destination = m.shared_access(copy.destination, copy.bytes, copy.lane, Use::kWrite)) {
    std::memcpy(destination, data, copy.bytes);
  }
  m.ip = wait;
}

// immediate: groups that may stay in flight, < 0: wait for all copies, committed or not
void wait(Machine& m, const Instruction& i, Mask mask) {
  auto& copies = m.warp->copies;
  size_t kept = 0;
  for (size_t k = 0; k < copies.size(); ++k) {
    const PendingCopy& copy = copies[k];
    const s64 first_kept =
        i.immediate < 0 ? s64{1} << 40 : static_cast<s64>(m.warp->committed[copy.lane]) - i.immediate;
    if (!(mask >> copy.lane & 1) || static_cast<s64>(copy.group) >= first_kept) {
      copies[kept++] = copies[k];
    } else {
      land(m, copy);
    }
  }
  copies.resize(kept);
}

void decode_issue(Decoder& d, Instruction& i) {
  if (d.count() != 3 && d.count() != 4) d.reject("expected 3 or 4 operands");
  i.address = d.address(0, Space::kShared);
  i.source = d.address(1, Space::kGlobal);
  i.immediate = d.immediate(2);
  i.op[0] = d.count() == 4 ? d.source(3, 32) : -1;
  if (i.immediate != 4 && i.immediate != 8 && i.immediate != 16) d.reject("bad cp.async size");
  if (d.has("cg") && i.immediate != 16) d.reject("cp.async.cg copies 16 bytes");
  d.origin().touches_memory = true;
  d.narrow_cells(Space::kShared, static_cast<int>(i.immediate));
  // A partial read must not count as a read of the whole cell.
  d.narrow_cells(Space::kGlobal, d.count() == 4 ? 2 : static_cast<int>(i.immediate));
}

void decode_wait(Decoder& d, Instruction& i) {
  d.expect(1);
  i.immediate = d.immediate(0);
  if (i.immediate < 0) d.reject("bad group count");
}

void decode_wait_all(Decoder& d, Instruction& i) {
  d.expect(0);
  i.immediate = -1;
}

}  // namespace

void add_async_opcodes(OpcodeTable& t) {
  t["cp.async.shared.global"] = {"", issue, decode_issue};
  t["cp.async.commit_group"] = {"", commit};
  t["cp.async.wait_group"] = {"", wait, decode_wait};
  t["cp.async.wait_all"] = {"", wait, decode_wait_all};
}

}  // namespace ptx
