#include "counters.h"

#include <algorithm>

#include "machine.h"

namespace ptx {

namespace {

constexpr int kSectorShift = 5, kBanks = 32;

void mark(std::vector<u64>& bits, u64 buffer_bytes, u64 sector) {
  if (bits.empty()) bits.resize((buffer_bytes >> kSectorShift) / 64 + 1);
  bits[sector / 64] |= u64{1} << sector % 64;
}

void mark_footprint(Machine& m, const u64* sectors, int count, bool read, bool write) {
  for (int i = 0; i < count; ++i) {
    // A sector may begin before or end after the bytes of its buffer, never both.
    BufferState* state = m.find_buffer(sectors[i] << kSectorShift, 1);
    if (!state) continue;
    const u64 local = sectors[i] - (state->buffer->address >> kSectorShift);
    if (read) mark(state->sectors_read, state->buffer->size, local);
    if (write) mark(state->sectors_written, state->buffer->size, local);
  }
}

// Returns the largest number of 4-byte words that one bank must deliver for the lanes of `mask`.
u32 passes(const u64* address, u32 words, Mask mask) {
  std::array<std::array<u32, 64>, kBanks> seen;  // distinct words of each bank: at most 8 x 4 or 32 x 1
  std::array<u8, kBanks> count{};
  u32 most = 0;
  for_lanes(mask, [&](int lane) {
    for (u32 j = 0; j < words; ++j) {
      const u32 word = static_cast<u32>(address[lane] / 4) + j, bank = word % kBanks;
      const auto end = seen[bank].begin() + count[bank];
      if (std::find(seen[bank].begin(), end, word) != end) continue;
      seen[bank][count[bank]++] = word;
      most = std::max<u32>(most, count[bank]);
    }
  });
  return most;
}

}  // namespace

void count_global(Machine& m, const u64* address, const u32* bytes, Mask mask, bool read, bool write) {
  if (!m.options.counters || !mask) return;
  std::array<u64, kWarpSize * 3> sectors;  // a misaligned 32-byte access touches two
  int count = 0;
  u64 total = 0;
  for_lanes(mask, [&](int lane) {
    total += bytes[lane];
    const u64 first = address[lane] >> kSectorShift, last = (address[lane] + bytes[lane] - 1) >> kSectorShift;
    for (u64 s = first; s <= last && s < first + 3; ++s) {
      if (!count || sectors[count - 1] != s) sectors[count++] = s;
    }
  });
  if (!std::is_sorted(sectors.begin(), sectors.begin() + count))
    std::sort(sectors.begin(), sectors.begin() + count);
  count = std::unique(sectors.begin(), sectors.begin() + count) - sectors.begin();
  InstructionCounters& c = m.counters.instructions[m.ip];
  c.bytes += total;
  c.sectors += count;
  if (read) m.counters.global_read_bytes += total, m.counters.global_read_sectors += count;
  if (write) m.counters.global_write_bytes += total, m.counters.global_write_sectors += count;
  mark_footprint(m, sectors.data(), count, read, write);
}

// A request of 64-bit words is served by half-warps, one of 128-bit words by quarter-warps.
void count_shared(Machine& m, const u64* address, u32 bytes, Mask mask) {
  if (!m.options.counters) return;
  InstructionCounters& c = m.counters.instructions[m.ip];
  c.bytes += static_cast<u64>(std::popcount(mask)) * bytes;
  const int lanes = bytes <= 4 ? 32 : bytes == 8 ? 16 : 8;
  for (int first = 0; first < kWarpSize; first += lanes) {
    const Mask phase = mask & (lanes == 32 ? kAllLanes : ((1u << lanes) - 1) << first);
    if (!phase) continue;
    c.wavefronts += passes(address, std::max(1u, bytes / 4), phase);
    ++c.ideal;
  }
}

u64 footprint_bytes(const std::vector<BufferState>& states, bool written) {
  u64 sectors = 0;
  for (const BufferState& state : states) {
    for (u64 bits : written ? state.sectors_written : state.sectors_read) sectors += std::popcount(bits);
  }
  return sectors << kSectorShift;
}

}  // namespace ptx
