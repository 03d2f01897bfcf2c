#include "launch.h"

#include <algorithm>
#include <numeric>

#include "scheduler.h"

namespace ptx {

namespace {

constexpr u8 kUnwrittenRegister = 0xcd, kUnwrittenShared = 0xff;

// splitmix64, which gives the same order on every machine.
class Random {
 public:
  explicit Random(u64 seed) : state_(seed) {}
  u64 below(u64 limit) {
    u64 z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return (z ^ z >> 31) % limit;
  }
  void shuffle(std::vector<u32>& order) {
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[below(i)]);
  }

 private:
  u64 state_;
};

class Launch {
 public:
  Launch(const Program& program, const Options& options)
      : program_(program),
        options_(options),
        machine_{.program = program, .options = options},
        random_(options.seed) {
    const auto& b = options.block;
    threads_ = b[0] * b[1] * b[2];
    warps_.resize((threads_ + kWarpSize - 1) / kWarpSize);
  }

  LaunchResult run(DeviceMemory& memory, DeviceMemory& variables) {
    attach(memory, machine_.buffers);
    attach(variables, machine_.variables);
    prepare_shared();
    prepare_registers();
    machine_.counters.instructions.resize(program_.code.size());
    try {
      run_blocks();
    } catch (const Trap&) {
      // The reports and counters up to the trap are the result.
    }
    return {std::move(machine_.counters), machine_.reports.all(), footprint_bytes(machine_.buffers, false),
            footprint_bytes(machine_.buffers, true)};
  }

 private:
  void attach(DeviceMemory& memory, std::vector<BufferState>& states) {
    for (Buffer& buffer : memory.buffers()) {
      BufferState& state = states.emplace_back();
      state.buffer = &buffer;
      if (options_.races && buffer.writable) state.shadow.allocate(buffer.size, program_.global_cell_shift);
    }
  }

  void prepare_shared() {
    SharedMemory& shared = machine_.shared;
    shared.ranges = program_.shared_ranges;
    const u32 begin = program_.shared_layout;
    if (options_.dynamic_shared) shared.ranges.push_back({begin, begin + options_.dynamic_shared});
    shared.bytes.resize(begin + options_.dynamic_shared);
  }

  void prepare_registers() {
    image_.assign(program_.register_bytes + 64, kUnwrittenRegister);
    for (const Constant& c : program_.constants) {
      u8* slot = image_.data() + c.slot;
      if (c.bits == 1) {
        const u32 mask = c.value ? kAllLanes : 0;
        std::memcpy(slot, &mask, sizeof mask);
        continue;
      }
      for (int lane = 0; lane < kWarpSize; ++lane)
        std::memcpy(slot + lane * c.bits / 8, &c.value, c.bits / 8);
    }
  }

  void run_blocks() {
    const auto& g = options_.grid;
    std::vector<u32> order(static_cast<size_t>(g[0]) * g[1] * g[2]);
    std::iota(order.begin(), order.end(), 0);
    if (options_.seed) random_.shuffle(order);
    for (u32 index : order) {
      machine_.block = {index % g[0], index / g[0] % g[1], index / g[0] / g[1]};
      start_block();
      while (run_interval()) {
      }
    }
  }

  void start_block() {
    machine_.block_start = ++machine_.epoch;
    SharedMemory& shared = machine_.shared;
    std::fill(shared.bytes.begin(), shared.bytes.end(), kUnwrittenShared);
    if (options_.races && !shared.bytes.empty())
      shared.shadow.allocate(shared.bytes.size(), program_.shared_cell_shift);
    for (size_t id = 0; id < warps_.size(); ++id) start_warp(warps_[id], static_cast<int>(id));
  }

  void start_warp(Warp& warp, int id) {
    std::vector<u8> registers = std::move(warp.registers);
    warp = Warp();
    registers.assign(image_.begin(), image_.end());
    warp.registers = std::move(registers);
    warp.id = id;
    warp.unfenced.assign(program_.guarded, kTouched);
    const u32 rest = threads_ - id * kWarpSize;
    warp.initial = warp.alive = rest >= kWarpSize ? kAllLanes : (1u << rest) - 1;
    for (const SpecialRegister& special : program_.specials) {
      u32* lanes = reinterpret_cast<u32*>(warp.registers.data() + special.slot);
      for (int lane = 0; lane < kWarpSize; ++lane) lanes[lane] = special_value(special.name, id, lane);
    }
  }

  u32 special_value(const std::string& name, int warp, int lane) const {
    const auto& b = options_.block;
    const u32 thread = warp * kWarpSize + lane;
    const size_t axis = static_cast<size_t>(name.back() - 'x');
    if (name.starts_with("%tid.")) {
      return axis == 0 ? thread % b[0] : axis == 1 ? thread / b[0] % b[1] : thread / b[0] / b[1];
    }
    if (name.starts_with("%ntid.")) return b[axis];
    if (name.starts_with("%ctaid.")) return machine_.block[axis];
    if (name.starts_with("%nctaid.")) return options_.grid[axis];
    if (name == "%laneid") return lane;
    if (name == "%warpid") return warp;
    if (name == "%nwarpid") return static_cast<u32>(warps_.size());
    const u32 bit = 1u << lane;
    if (name == "%lanemask_eq") return bit;
    if (name == "%lanemask_lt") return bit - 1;
    if (name == "%lanemask_le") return bit | (bit - 1);
    if (name == "%lanemask_gt") return ~(bit | (bit - 1));
    if (name == "%lanemask_ge") return ~(bit - 1);
    return 0;  // %clock
  }

  // Runs every warp up to the next block barrier; returns false if the block has ended.
  bool run_interval() {
    std::vector<u32> order(warps_.size());
    std::iota(order.begin(), order.end(), 0);
    if (options_.seed) random_.shuffle(order);
    for (u32 i : order) run_warp(machine_, warps_[i]);
    if (std::none_of(warps_.begin(), warps_.end(), [](const Warp& w) { return w.at_barrier; })) return false;
    release_barrier();
    ++machine_.epoch;
    ++machine_.counters.block_barriers;
    return true;
  }

  void release_barrier() {
    u32 yes = 0, waiting = 0;
    bool exited = false;
    for (Warp& w : warps_) {
      if (w.at_barrier) {
        yes += std::popcount(w.barrier_true);
        waiting += std::popcount(w.alive);
      }
      exited |= !w.at_barrier;
    }
    for (Warp& w : warps_) {
      if (!w.at_barrier) continue;
      machine_.warp = &w;
      machine_.registers = w.registers.data();
      machine_.ip = w.barrier;
      if (exited) machine_.report("bar.sync after other warps have exited", 0);
      give_result(w, yes, waiting);
      w.at_barrier = false;
      ++w.step;
    }
  }

  void give_result(Warp& w, u32 yes, u32 waiting) {
    const Instruction& i = program_.code[w.barrier];
    switch (static_cast<BarrierResult>(i.immediate)) {
      case BarrierResult::kNone:
        break;
      case BarrierResult::kPopc:
        for_lanes(w.alive, [&](int lane) { machine_.lanes<u32>(i.op[0])[lane] = yes; });
        break;
      case BarrierResult::kAnd:
        machine_.set_predicate(i.op[0], yes == waiting ? kAllLanes : 0, w.alive);
        break;
      case BarrierResult::kOr:
        machine_.set_predicate(i.op[0], yes ? kAllLanes : 0, w.alive);
        break;
    }
  }

  const Program& program_;
  const Options& options_;
  Machine machine_;
  Random random_;
  u32 threads_ = 0;
  std::vector<Warp> warps_;
  std::vector<u8> image_;
};

}  // namespace

LaunchResult launch(const Program& program, DeviceMemory& memory, DeviceMemory& variables,
                    const Options& options) {
  return Launch(program, options).run(memory, variables);
}

}  // namespace ptx
