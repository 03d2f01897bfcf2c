// Counted work and traffic.
#pragma once
#include <array>
#include <numeric>
#include <vector>

#include "common.h"

namespace ptx {

struct Machine;
struct BufferState;

// A count for each scheduler of an SM; warp w of a block belongs to scheduler w % kSchedulers.
constexpr int kSchedulers = 4;
using PerScheduler = std::array<u64, kSchedulers>;
inline u64 sum_of(const PerScheduler& counts) { return std::accumulate(counts.begin(), counts.end(), u64{}); }

struct InstructionCounters {
  PerScheduler issued{};  // warp-level executions
  u64 threads = 0;        // active threads, summed over the executions
  u64 bytes = 0;          // requested by the threads
  u64 sectors = 0;        // distinct 32-byte global sectors of each request, summed
  u64 wavefronts = 0;     // shared memory passes, bank conflicts included
  u64 ideal = 0;          // passes without bank conflicts
};

struct Counters {
  std::vector<InstructionCounters> instructions;
  PerScheduler mma{};
  u64 block_barriers = 0, divergent_groups = 0, benign_writes = 0;
  u64 global_read_bytes = 0, global_write_bytes = 0, global_read_sectors = 0, global_write_sectors = 0;
};

// One warp-level request: lane i of `mask` touches bytes[i] bytes at address[i].
void count_global(Machine& machine, const u64* address, const u32* bytes, Mask mask, bool read, bool write);
void count_shared(Machine& machine, const u64* address, u32 bytes, Mask mask);
u64 footprint_bytes(const std::vector<BufferState>& states, bool written);

}  // namespace ptx
