#include "races.h"

#include <algorithm>

namespace ptx {

namespace {

constexpr u8 kMany = 255;

// Two accesses of the same block are ordered by a block barrier between them, by being of one thread, or, in
// one warp, by a warp barrier.  Blocks are never ordered against one another.
bool unordered(const Machine& m, const Access& earlier, int lane) {
  if (earlier.epoch < m.epoch) return false;
  if (earlier.warp != m.warp->id) return true;
  return earlier.lane != lane && earlier.step == m.warp->step;
}

bool is_foreign(const Machine& m, const Access& earlier) {
  return earlier.epoch && earlier.epoch < m.block_start;
}

// Merges all accesses since the last ordering point into one: of one thread, of many lanes, or of many warps.
void merge(const Machine& m, Access& access, bool& foreign, int lane) {
  foreign |= is_foreign(m, access);
  const u8 warp = static_cast<u8>(m.warp->id);
  // A warp has waited for its asynchronous accesses; only other warps need a barrier.
  const u32 step = lane == kAsyncLane ? 0 : m.warp->step;
  if (access.epoch != m.epoch) {
    access = {m.epoch, step, warp, static_cast<u8>(lane)};
    return;
  }
  if (access.warp != warp) {
    access.warp = kMany;
  } else if (access.lane != lane) {
    access.lane = access.step == step ? kMany : static_cast<u8>(lane);
  }
  access.step = std::max(access.step, step);
}

enum class Conflict { kNone, kReadAfterWrite, kWriteAfterWrite, kWriteAfterRead };

Conflict conflict(Machine& m, const Cell& cell, const Touch& t, bool same_bytes) {
  const bool global = t.space == Space::kGlobal;
  const bool write =
      unordered(m, cell.write, t.lane) || (global && (cell.foreign_write || is_foreign(m, cell.write)));
  if (write && !(t.use == Use::kAtomic && cell.write_atomic)) {
    if (t.use == Use::kRead) return Conflict::kReadAfterWrite;
    if (t.use == Use::kAtomic || !same_bytes) return Conflict::kWriteAfterWrite;
    ++m.counters.benign_writes;
  }
  if (t.use == Use::kRead) return Conflict::kNone;
  const bool read =
      unordered(m, cell.read, t.lane) || (global && (cell.foreign_read || is_foreign(m, cell.read)));
  return read ? Conflict::kWriteAfterRead : Conflict::kNone;
}

void record(Machine& m, Cell& cell, const Touch& t) {
  if (t.use == Use::kRead) {
    merge(m, cell.read, cell.foreign_read, t.lane);
    return;
  }
  const bool atomic = t.use == Use::kAtomic;
  // An ordered write starts a new record; an unordered one of another kind has already been reported.
  const bool fresh = !unordered(m, cell.write, t.lane);
  cell.write_atomic = atomic && (fresh || cell.write_atomic);
  merge(m, cell.write, cell.foreign_write, t.lane);
}

const char* name(Conflict conflict, bool global) {
  switch (conflict) {
    case Conflict::kReadAfterWrite:
      return global ? "global race: read after write" : "shared race: read after write";
    case Conflict::kWriteAfterWrite:
      return global ? "global race: write after write" : "shared race: write after write";
    default:
      return global ? "global race: write after read" : "shared race: write after read";
  }
}

}  // namespace

void touch(Machine& m, Cell* cell, u32 bytes, int shift, const Touch& t) {
  const bool global = t.space == Space::kGlobal;
  const u32 cell_bytes = 1u << shift;
  Conflict first = Conflict::kNone;
  bool in_flight = false, uninitialised = false, operand = false;
  for (u32 at = 0; at < bytes; at += cell_bytes, ++cell) {
    in_flight |= cell->pending;
    operand |= cell->operand_of != 0;
    uninitialised |= cell->write.epoch < m.block_start;
    const u32 n = std::min(cell_bytes, bytes - at);
    const bool same = t.old_bytes && t.new_bytes && !std::memcmp(t.old_bytes + at, t.new_bytes + at, n);
    if (first == Conflict::kNone) first = conflict(m, *cell, t, same);
    record(m, *cell, t);
  }
  if (in_flight) {
    m.report(t.use == Use::kRead ? "shared read of in-flight cp.async data"
                                 : "shared write of in-flight cp.async data",
             t.lane, t.address);
  }
  if (operand && t.use != Use::kRead) {
    m.report("shared write to operands of a wgmma in flight", t.lane, t.address);
  }
  if (!global && t.use != Use::kWrite && uninitialised) {
    m.report("shared read of uninitialised memory", t.lane, t.address);
  }
  if (first != Conflict::kNone) m.report(name(first, global), t.lane, t.address);
}

}  // namespace ptx
