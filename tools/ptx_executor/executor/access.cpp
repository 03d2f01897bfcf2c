// Address resolution: checks of bounds and alignment, then of the shadow.
#include <algorithm>
#include <cstdio>

#include "machine.h"
#include "races.h"

namespace ptx {

std::string Machine::where(int lane) const {
  return "block (" + std::to_string(block[0]) + "," + std::to_string(block[1]) + "," +
         std::to_string(block[2]) + ") warp " + std::to_string(warp ? warp->id : 0) +
         (lane == kAsyncLane ? std::string() : " lane " + std::to_string(lane));
}

namespace {

// Returns the buffer whose 2^36 bytes of address space contain the address, in or out of bounds.
const Buffer* nearest(const std::vector<BufferState>& states, u64 address, u64 base) {
  const u64 index = ((address - base) >> kBufferShift) - 1;
  return index < states.size() ? states[index].buffer : nullptr;
}

std::string hex(u64 value) {
  char text[24];
  std::snprintf(text, sizeof text, "0x%llx", static_cast<unsigned long long>(value));
  return text;
}

}  // namespace

std::string Machine::where(int lane, u64 address) const {
  std::string text = where(lane) + ", ";
  if (address < u64{1} << kBufferShift) return text + "offset " + std::to_string(address);
  const bool is_variable = address >= kVariableBase;
  const Buffer* buffer =
      is_variable ? nearest(variables, address, kVariableBase) : nearest(buffers, address, 0);
  if (!buffer) return text + "address " + hex(address);
  return text + buffer->name + " + " + std::to_string(address - buffer->address) + " of " +
         std::to_string(buffer->size) + " bytes";
}

void Machine::addresses(const Address& address, u64* result) {
  const u64 offset = static_cast<u64>(address.offset);
  if (address.base < 0) {
    std::fill(result, result + kWarpSize, offset);
  } else if (address.wide) {
    const u64* base = lanes<u64>(address.base);
    for (int lane = 0; lane < kWarpSize; ++lane) result[lane] = base[lane] + offset;
  } else {
    const u32* base = lanes<u32>(address.base);
    for (int lane = 0; lane < kWarpSize; ++lane) result[lane] = base[lane] + static_cast<u32>(offset);
  }
}

BufferState* Machine::find_buffer(u64 address, u64 bytes) {
  if (last_buffer && last_buffer->buffer->holds(address, bytes)) return last_buffer;
  const bool is_variable = address >= kVariableBase;
  std::vector<BufferState>& states = is_variable ? variables : buffers;
  const u64 index = ((is_variable ? address - kVariableBase : address) >> kBufferShift) - 1;
  if (index >= states.size() || !states[index].buffer->holds(address, bytes)) return nullptr;
  return last_buffer = &states[index];
}

u8* Machine::global_access(u64 address, u32 bytes, int lane, Use use, const u8* value, u32 alignment) {
  BufferState* state = find_buffer(address, bytes);
  if (!state) {
    report(use == Use::kRead ? "global read out of bounds" : "global write out of bounds", lane, address);
    return nullptr;
  }
  if (address & ((alignment ? alignment : bytes) - 1)) report("global misaligned", lane, address);
  Buffer& buffer = *state->buffer;
  const u64 offset = address - buffer.address;
  u8* data = buffer.data + offset;
  if (!buffer.writable) {
    if (use == Use::kRead) return data;
    report("write to read-only buffer", lane, address);
    return nullptr;
  }
  if (!buffer.written.empty()) {
    u8* written = buffer.written.data() + offset;
    if (use != Use::kWrite && std::memchr(written, 0, bytes)) {
      report("global read of uninitialised memory", lane, address);
    }
    if (use != Use::kRead) std::memset(written, 1, bytes);
  }
  if (options.races) {
    touch(*this, state->shadow.at(offset), bytes, program.global_cell_shift,
          {Space::kGlobal, lane, use, address, data, value});
  }
  return data;
}

u8* Machine::shared_access(u64 address, u32 bytes, int lane, Use use, const u8* value) {
  if (address >> 32 || !shared.holds(static_cast<u32>(address), bytes)) {
    report(use == Use::kRead ? "shared read out of bounds" : "shared write out of bounds", lane,
           address & 0xffffffffu);
    return nullptr;
  }
  if (address & (bytes - 1)) report("shared misaligned", lane, address);
  u8* data = shared.bytes.data() + address;
  if (options.races) {
    touch(*this, shared.shadow.at(address), bytes, program.shared_cell_shift,
          {Space::kShared, lane, use, address, data, value});
  }
  return data;
}

}  // namespace ptx
