#include "scheduler.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "wgmma.h"

namespace ptx {

namespace {

// Lanes at the lowest program counter run first, and stop where others wait: in structured code, where
// branches join.  An instruction that needs other lanes (bar.sync, shfl.sync, mma) parks its lanes until
// those have arrived, so the order of blocks in the text does not matter to it.
class WarpRunner {
 public:
  WarpRunner(Machine& m, Warp& w) : m_(m), w_(w) {}

  void run() {
    m_.warp = &w_;
    m_.registers = w_.registers.data();
    while (w_.alive && !w_.at_barrier) {
      Mask ready = w_.alive & ~w_.parked;
      forced_ = ready == 0;
      if (forced_) {
        ready = w_.parked & w_.alive;  // no other lane can arrive
        w_.parked = 0;
      }
      run_group(ready);
    }
  }

 private:
  void run_group(Mask ready) {
    constexpr int kNever = std::numeric_limits<int>::max();
    int pc = kNever, meeting = kNever;
    for_lanes(ready, [&](int lane) { pc = std::min(pc, w_.pc[lane]); });
    Mask group = 0;
    for_lanes(ready, [&](int lane) {
      if (w_.pc[lane] == pc) {
        group |= 1u << lane;
      } else {
        meeting = std::min(meeting, w_.pc[lane]);
      }
    });
    if (forced_) w_.parked = ready & ~group;
    if (group != w_.alive) ++m_.counters.divergent_groups;
    bool going = true;
    while (going && pc < meeting) going = step(pc, group);
    for_lanes(group & w_.alive, [&](int lane) { w_.pc[lane] = pc; });
  }

  // Executes one instruction; returns false to regroup.  `group` may lose lanes whose pc has been set.
  bool step(int& pc, Mask& group) {
    if (pc >= static_cast<int>(m_.program.code.size())) throw ExecutionError("ran off the end of the kernel");
    if (++m_.steps > m_.options.step_limit) {
      throw StepLimit("more than " + std::to_string(m_.options.step_limit) + " warp instructions");
    }
    const Instruction& i = m_.program.code[pc];
    Mask active = group;
    if (i.guard >= 0) active &= *m_.lanes<u32>(i.guard) ^ (i.guard_negated ? kAllLanes : 0);
    m_.ip = pc;
    if (i.gather != Gather::kNone && active && !gather(i, pc, group, active)) return false;
    InstructionCounters& c = m_.counters.instructions[pc];
    ++c.issued[w_.scheduler()];
    c.threads += std::popcount(active);
    if (i.flow != Flow::kNext) return transfer(i, pc, group, active);
    if (active && !i.guarded.empty()) touch_registers(w_, i);
    if (active) i.run(m_, i, active);
    ++pc;
    return true;
  }

  bool complete(const Instruction& i, Mask active) {
    Mask needed = w_.alive;
    if (i.gather == Gather::kMembers) needed &= m_.lanes<u32>(i.members)[std::countr_zero(active)];
    return !(needed & ~active);
  }

  // Adds the lanes that are parked here; returns false if lanes are missing, so that these are parked.
  bool gather(const Instruction& i, int pc, Mask& group, Mask& active) {
    const bool forced = std::exchange(forced_, false);
    if (active == w_.alive) return check(i, active);
    for_lanes(w_.parked, [&](int lane) {
      if (w_.pc[lane] != pc) return;
      group |= 1u << lane;
      active |= 1u << lane;
    });
    w_.parked &= ~active;
    if (complete(i, active)) return check(i, active);
    if (forced) {
      if (i.gather == Gather::kWarp) m_.report(divergent(i), std::countr_zero(active));
      return true;
    }
    for_lanes(active, [&](int lane) { w_.pc[lane] = pc; });
    for_lanes(group & ~active, [&](int lane) { w_.pc[lane] = pc + 1; });
    w_.parked |= active;
    group = 0;
    return false;
  }

  // Reports a fault if lanes have exited, as they cannot take part.
  bool check(const Instruction& i, Mask active) {
    if (i.gather == Gather::kWarp && active != w_.initial) m_.report(divergent(i), std::countr_zero(active));
    // A fragment needs all 32 lanes.
    if (i.gather == Gather::kWarp && i.flow == Flow::kNext && w_.initial != kAllLanes &&
        active == w_.initial) {
      m_.report(divergent(i), std::countr_zero(active));
    }
    return true;
  }

  static const char* divergent(const Instruction& i) {
    return i.flow == Flow::kBlockBarrier ? "bar.sync in divergent code"
                                         : "warp instruction executed by part of a warp";
  }

  bool transfer(const Instruction& i, int& pc, Mask& group, Mask active) {
    switch (i.flow) {
      case Flow::kBranch:
        return branch(i.target, pc, group, active);
      case Flow::kBranchTable:
        return branch_table(i, pc, group, active);
      case Flow::kExit:
        w_.alive &= ~active;
        group &= ~active;
        ++pc;
        return group != 0 && !active;
      case Flow::kTrap:
        if (active) {
          m_.report("trap executed", std::countr_zero(active));
          throw Trap();
        }
        ++pc;
        return true;
      default:
        return block_barrier(i, pc, group, active);
    }
  }

  bool branch(int target, int& pc, Mask& group, Mask active) {
    if (!active) {
      ++pc;
      return true;
    }
    if (active == group) {
      const bool back = target <= pc;
      pc = target;
      return !back || group == w_.alive;  // a loop must not starve the lanes behind it
    }
    for_lanes(group, [&](int lane) { w_.pc[lane] = active >> lane & 1 ? target : pc + 1; });
    group = 0;
    return false;
  }

  bool branch_table(const Instruction& i, int& pc, Mask& group, Mask active) {
    const u32* index = m_.lanes<u32>(i.op[0]);
    for_lanes(group, [&](int lane) {
      if (!(active >> lane & 1)) {
        w_.pc[lane] = pc + 1;
      } else if (index[lane] < i.list.size()) {
        w_.pc[lane] = i.list[index[lane]];
      } else {
        throw ExecutionError("brx.idx: index " + std::to_string(index[lane]) + " is outside its table");
      }
    });
    group = 0;
    return false;
  }

  bool block_barrier(const Instruction& i, int& pc, Mask& group, Mask active) {
    if (!active) {
      ++pc;
      return true;
    }
    for_lanes(group, [&](int lane) { w_.pc[lane] = pc + 1; });
    group = 0;
    w_.at_barrier = true;
    w_.barrier = pc;
    w_.barrier_true = i.immediate ? m_.predicate(i.op[2]) & active : 0;
    const auto& b = m_.options.block;
    const u32 threads = b[0] * b[1] * b[2], whole = (threads + kWarpSize - 1) / kWarpSize * kWarpSize;
    const u32 count = i.op[1] >= 0 ? m_.lanes<u32>(i.op[1])[std::countr_zero(active)] : threads;
    if (count != threads && count != whole) {
      throw ExecutionError("deadlock: a barrier of " + std::to_string(count) + " threads in a block of " +
                           std::to_string(threads));
    }
    return false;
  }

  Machine& m_;
  Warp& w_;
  bool forced_ = false;
};

}  // namespace

void run_warp(Machine& machine, Warp& warp) { WarpRunner(machine, warp).run(); }

}  // namespace ptx
