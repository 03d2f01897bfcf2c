// State that the handlers of opcodes work on: one launch, its current block and its current warp.
#pragma once
#include <array>
#include <map>
#include <string>
#include <vector>

#include "counters.h"
#include "memory.h"
#include "report.h"

namespace ptx {

enum class Use : u8 { kRead, kWrite, kAtomic };

// A cp.async that has been issued, but not waited for.
struct PendingCopy {
  u32 destination = 0;
  u64 source = 0;
  u8 bytes = 0, source_bytes = 0, lane = 0;
  u32 group = 0;
  int instruction = 0;
};

// A wgmma that has been issued; it executes at the wait_group that covers it.
struct PendingWgmma {
  int instruction = 0;
  u32 group = 0;
  u64 a = 0, b = 0;  // descriptors
  bool accumulate = false;
  std::vector<u32> fragment;  // a, if in registers: four for each lane, as they were at issue
};

constexpr u8 kTouched = 0xff;

struct Warp {
  int id = 0;
  std::vector<u8> registers;
  std::array<int, kWarpSize> pc{};
  Mask initial = 0, alive = 0;
  Mask parked = 0;  // lanes that wait at their instruction for other lanes of the warp
  bool at_barrier = false;
  int barrier = 0;                         // the instruction that the warp waits at
  Mask barrier_true = 0;                   // bar.red: lanes whose predicate is true
  u32 step = 1;                            // counts the barriers that the warp has passed
  Mask carry = 0;                          // the condition code register of add.cc
  std::array<u32, kWarpSize> committed{};  // cp.async groups committed by each lane
  std::vector<PendingCopy> copies;
  u32 wgmma_group = 0;
  std::vector<PendingWgmma> wgmmas;
  std::map<int, std::vector<float>> accumulators;  // of wgmmas in flight, by first slot
  // State of each register of wgmmas since the latest wgmma.fence: 0 for no access, the shape of the wgmma
  // that accumulates in the register, or kTouched.
  std::vector<u8> unfenced;

  int scheduler() const { return id % kSchedulers; }
};

struct Options {
  std::array<u32, 3> grid{1, 1, 1}, block{1, 1, 1};
  std::vector<u8> parameters;
  u32 dynamic_shared = 0;
  u64 seed = 0;
  bool races = true, counters = true;
  u64 step_limit = 0;
};

struct Machine {
  const Program& program;
  const Options& options;
  Warp* warp = nullptr;
  u8* registers = nullptr;
  int ip = 0;  // index of the instruction under execution
  std::array<u32, 3> block{};
  SharedMemory shared;
  std::vector<BufferState> buffers, variables;
  BufferState* last_buffer = nullptr;
  u32 epoch = 1, block_start = 1;
  Counters counters;
  Reports reports;
  u64 steps = 0;

  template <class T>
  T* lanes(int slot) {
    return reinterpret_cast<T*>(registers + slot);
  }
  // The low bit of a predicate slot selects the complement.
  Mask predicate(int slot) { return *lanes<u32>(slot & ~1) ^ (slot & 1 ? kAllLanes : 0); }
  void set_predicate(int slot, Mask value, Mask mask) {
    u32& p = *lanes<u32>(slot);
    p = (p & ~mask) | (value & mask);
  }

  std::string where(int lane) const;
  std::string where(int lane, u64 address) const;
  void report(const char* kind, int lane) {
    reports.add(kind, ip, [&] { return where(lane); });
  }
  void report(const char* kind, int lane, u64 address) {
    reports.add(kind, ip, [&] { return where(lane, address); });
  }

  void addresses(const Address& address, u64* result);
  BufferState* find_buffer(u64 address, u64 bytes);
  // Check one thread's access and return the bytes to use, or null (out of bounds, write to read-only).
  // `alignment` 0: the size of the access.  `value`: the bytes about to be written, if known.
  u8* global_access(u64 address, u32 bytes, int lane, Use use, const u8* value = nullptr, u32 alignment = 0);
  u8* shared_access(u64 address, u32 bytes, int lane, Use use, const u8* value = nullptr);
};

}  // namespace ptx
