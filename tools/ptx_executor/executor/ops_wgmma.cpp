// wgmma with bf16 or tf32 operands, b in shared memory and a there or in registers.  Each of the four warps
// of a warpgroup owns 16 rows.  An instruction takes 32 bytes of k: 16 bf16 or 8 tf32, which are never
// transposed.
//
// An instruction executes at the wait_group that covers it.  Until then its accumulator registers are poison,
// and its operands count as being read: a write in between is reported.
#include <algorithm>
#include <array>

#include "bfloat.h"
#include "decode.h"
#include "opcodes.h"
#include "wgmma.h"

namespace ptx {

namespace {

constexpr int kRows = 16, kMaxK = 16, kMaxN = 256;
constexpr u32 kDepthBytes = 32, kPieceBytes = 16;

struct Operands {
  float a[kRows][kMaxK];
  float b[kMaxK][kMaxN];
};

int depth(const Instruction& i) { return kDepthBytes / i.element_bytes; }

// A matrix descriptor of the PTX ISA: start, leading and stride byte offsets (in units of 16), swizzle in
// bits 62-63.
class Descriptor {
 public:
  Descriptor(u64 bits, bool transposed, u32 element_bytes)
      : transposed_(transposed), element_bytes_(element_bytes) {
    start_ = (bits & 0x3fff) << 4;
    leading_ = (bits >> 16 & 0x3fff) << 4;
    stride_ = (bits >> 32 & 0x3fff) << 4;
    const int swizzle = static_cast<int>(bits >> 62);
    if (swizzle == 0) throw ExecutionError("wgmma: descriptors without swizzle are not supported");
    if (bits >> 49 & 7) throw ExecutionError("wgmma: base offsets are not supported");
    row_bytes_ = swizzle == 1 ? 128 : swizzle == 2 ? 64 : 32;
  }

  // Returns the shared address of element `k` of row (of a) or column (of b) `mn`.
  u32 address(u32 mn, u32 k) const {
    const u32 per_row = row_bytes_ / element_bytes_;
    const u32 plain = transposed_ ? start_ + mn / per_row * leading_ + k / 8 * stride_ + k % 8 * row_bytes_ +
                                        mn % per_row * element_bytes_
                                  : start_ + mn / 8 * stride_ + mn % 8 * row_bytes_ + k * element_bytes_;
    // The 16-byte chunks of a row are permuted by the row's number within its 128-byte pattern.
    return plain ^ ((plain >> 7 & (row_bytes_ / 16 - 1)) << 4);
  }

  bool transposed() const { return transposed_; }
  u32 element_bytes() const { return element_bytes_; }

 private:
  bool transposed_;
  u32 element_bytes_, start_, leading_, stride_, row_bytes_;
};

// Changes the number of wgmmas in flight that read these 16 bytes.
void hold_operand(Machine& m, u32 address, int change) {
  if (!m.options.races) return;
  for (u32 at = 0; at < 16; at += 1u << m.program.shared_cell_shift) {
    m.shared.shadow.at(address + at)->operand_of += change;
  }
}

// Returns an element of 16 bytes, or poison if they are out of bounds.
float element_of(const u8* piece, u32 index, u32 bytes) {
  u32 bits = 0xffffffffu;
  if (piece) {
    bits = 0;
    std::memcpy(&bits, piece + bytes * index, bytes);
  }
  return bytes == 2 ? from_bfloat(static_cast<u16>(bits)) : from_tf32(bits);
}

// Reads `count` rows of 32 bytes, in the 16-byte pieces that the unit reads.
template <class F>
void read_operand(Machine& m, const Descriptor& d, u32 first, u32 count, int hold, F put) {
  const u32 bytes = d.element_bytes(), deep = kDepthBytes / bytes, piece = kPieceBytes / bytes;
  const u32 rows = d.transposed() ? deep : count, columns = d.transposed() ? count : deep;
  for (u32 row = 0; row < rows; ++row) {
    for (u32 column = 0; column < columns; column += piece) {
      const u32 mn = d.transposed() ? first + column : first + row, k = d.transposed() ? row : column;
      const u8* data = m.shared_access(d.address(mn, k), kPieceBytes, kAsyncLane, Use::kRead);
      if (data) hold_operand(m, d.address(mn, k), hold);
      for (u32 j = 0; j < piece; ++j) {
        const float value = element_of(data, j, bytes);
        put(d.transposed() ? column + j : row, d.transposed() ? row : column + j, value);
      }
    }
  }
}

constexpr int kFragmentRegisters = 4, kFirstFragment = 3;

bool in_registers(const Instruction& i) { return i.op[0] < 0; }

std::vector<u32> fragment_of(Machine& m, const Instruction& i) {
  std::vector<u32> fragment;
  for (int r = 0; r < kFragmentRegisters; ++r) {
    const u32* values = m.lanes<u32>(i.op[kFirstFragment + r]);
    fragment.insert(fragment.end(), values, values + kWarpSize);
  }
  return fragment;
}

// Register r of a lane has row lane / 4 + 8 (r % 2): for bf16 columns lane % 4 * 2 + 8 (r / 2) and the next,
// for tf32 column lane % 4 + 4 (r / 2).
void read_fragment(const PendingWgmma& w, u32 bytes, Operands& o) {
  for (size_t at = 0; at < w.fragment.size(); ++at) {
    const size_t r = at / kWarpSize, lane = at % kWarpSize, row = lane / 4 + r % 2 * 8;
    const u8* value = reinterpret_cast<const u8*>(&w.fragment[at]);
    const size_t each = 4 / bytes, k = lane % 4 * each + r / 2 * 4 * each;
    for (size_t j = 0; j < each; ++j) o.a[row][k + j] = element_of(value, static_cast<u32>(j), bytes);
  }
}

// immediate: bit 0, 1: a, b transposed; vector: N / 8.  hold: +1 at issue, -1 at execution
void read_operands(Machine& m, const Instruction& i, const PendingWgmma& w, int hold, Operands& o) {
  if (in_registers(i)) {
    read_fragment(w, i.element_bytes, o);
  } else {
    read_operand(m, Descriptor(w.a, i.immediate & 1, i.element_bytes), m.warp->id % 4 * kRows, kRows, hold,
                 [&](u32 row, u32 k, float value) { o.a[row][k] = value; });
  }
  read_operand(m, Descriptor(w.b, i.immediate & 2, i.element_bytes), 0, i.vector * 8u, hold,
               [&](u32 column, u32 k, float value) { o.b[k][column] = value; });
}

void execute(Machine& m, const Instruction& i, const PendingWgmma& w) {
  Operands o;
  read_operands(m, i, w, -1, o);
  if (in_registers(i) && fragment_of(m, i) != w.fragment) {
    m.report("register write to operand of a wgmma in flight", 0);
  }
  ++m.counters.mma[m.warp->scheduler()];
  std::vector<float>& accumulator = m.warp->accumulators[i.list[0]];
  for (size_t r = 0; r < i.list.size(); ++r) {
    for (int lane = 0; lane < kWarpSize; ++lane) {
      const size_t row = lane / 4 + r / 2 % 2 * 8, column = r / 4 * 8 + lane % 4 * 2 + r % 2;
      float& target = accumulator[r * kWarpSize + lane];
      double sum = w.accumulate ? target : 0;
      for (int k = 0; k < depth(i); ++k) sum += static_cast<double>(o.a[row][k]) * o.b[k][column];
      target = static_cast<float>(sum);
    }
  }
}

// Returns a descriptor, which must be the same in all lanes.
u64 descriptor(Machine& m, int slot) {
  const u64* values = m.lanes<u64>(slot);
  for (int lane = 1; lane < kWarpSize; ++lane) {
    if (values[lane] != values[0]) m.report("wgmma descriptor differs between lanes", lane);
  }
  return values[0];
}

// Wgmmas of different shapes are not ordered without a fence, even if they accumulate in the same registers.
u8 shape_of(const Instruction& i) { return static_cast<u8>(i.vector | (i.element_bytes == 4 ? 64 : 0)); }

// A wgmma needs a fence between the last access of its registers and itself; only a wgmma that accumulates in
// the registers of an earlier one of the same shape needs none.
void check_fence(Machine& m, const Instruction& i) {
  bool fenced = true;
  for (size_t at = 0; at < i.guarded.size(); ++at) {
    u8& state = m.warp->unfenced[i.guarded[at]];
    const bool accumulates = at < i.list.size();
    fenced &= state == 0 || (accumulates && state == shape_of(i));
    if (accumulates) state = shape_of(i);
  }
  if (!fenced) m.report("wgmma on registers without a wgmma.fence since their last access", 0);
}

// op: descriptors of a (below 0: in registers) and b, the scale-d predicate, a's registers
void issue(Machine& m, const Instruction& i, Mask) {
  check_fence(m, i);
  PendingWgmma w{m.ip, m.warp->wgmma_group, 0, descriptor(m, i.op[1]), (m.predicate(i.op[2]) & 1) != 0, {}};
  if (in_registers(i)) {
    w.fragment = fragment_of(m, i);
  } else {
    w.a = descriptor(m, i.op[0]);
  }
  std::vector<float>& accumulator = m.warp->accumulators[i.list[0]];
  const bool chained = !accumulator.empty();  // an earlier wgmma on the same registers is in flight
  accumulator.resize(i.list.size() * kWarpSize);
  for (size_t r = 0; r < i.list.size(); ++r) {
    float* d = m.lanes<float>(i.list[r]);
    if (!chained) std::memcpy(&accumulator[r * kWarpSize], d, sizeof(float) * kWarpSize);
    std::memset(d, 0xff, sizeof(float) * kWarpSize);
  }
  Operands unused;
  read_operands(m, i, w, +1, unused);
  m.warp->wgmmas.push_back(w);
}

void commit(Machine& m, const Instruction&, Mask) { ++m.warp->wgmma_group; }

// Writes accumulators back to their registers if no other wgmma on them is in flight.
void release(Machine& m, const PendingWgmma& done) {
  const std::vector<int>& list = m.program.code[done.instruction].list;
  for (const PendingWgmma& w : m.warp->wgmmas) {
    if (m.program.code[w.instruction].list[0] == list[0]) return;
  }
  const auto it = m.warp->accumulators.find(list[0]);
  if (it == m.warp->accumulators.end()) return;
  for (size_t r = 0; r < list.size(); ++r) {
    std::memcpy(m.lanes<float>(list[r]), &it->second[r * kWarpSize], sizeof(float) * kWarpSize);
  }
  m.warp->accumulators.erase(it);
}

void wait(Machine& m, const Instruction& i, Mask) {
  std::vector<PendingWgmma> done, kept;
  for (const PendingWgmma& w : m.warp->wgmmas) {
    (static_cast<s64>(w.group) < static_cast<s64>(m.warp->wgmma_group) - i.immediate ? done : kept)
        .push_back(w);
  }
  const int ip = m.ip;
  for (const PendingWgmma& w : done) {
    m.ip = w.instruction;
    execute(m, m.program.code[w.instruction], w);
  }
  m.ip = ip;
  m.warp->wgmmas = kept;
  for (const PendingWgmma& w : done) release(m, w);
}

void fence(Machine& m, const Instruction&, Mask) {
  std::fill(m.warp->unfenced.begin(), m.warp->unfenced.end(), u8{0});
}

template <int kElementBytes>
void decode_issue(Decoder& d, Instruction& i) {
  const bool registers = d.operand(1).kind == Operand::Kind::kVector;
  const bool transposable = kElementBytes == 2;
  i.element_bytes = kElementBytes;
  d.expect(transposable ? (registers ? 7 : 8) : 6);
  const std::string_view spelling = d.spelling();
  const size_t at = spelling.find("m64n") + 4;
  const int n = std::stoi(std::string(spelling.substr(at, spelling.find('k', at) - at)));
  const auto names = d.vector(0);
  if (n < 8 || n > kMaxN || n % 8 || static_cast<int>(names.size()) != n / 2) d.reject("bad wgmma shape");
  for (std::string_view name : names) i.list.push_back(d.destination(name, 32));
  i.op[0] = registers ? -1 : d.source(1, 64);
  if (registers) {
    const auto fragment = d.vector(1);
    if (fragment.size() != kFragmentRegisters) d.reject("a takes four registers");
    for (int r = 0; r < kFragmentRegisters; ++r) i.op[kFirstFragment + r] = d.source(fragment[r], 32);
  }
  i.op[1] = d.source(2, 64);
  i.op[2] = d.source(3, 1);
  if (d.immediate(4) != 1 || d.immediate(5) != 1) d.reject("only scales of 1 are supported");
  i.immediate = 0;
  if (transposable) {
    i.immediate = registers ? (d.immediate(6) & 1) << 1 : (d.immediate(6) & 1) | (d.immediate(7) & 1) << 1;
  }
  i.vector = static_cast<u8>(n / 8);
  i.gather = Gather::kWarp;
  d.origin().touches_memory = true;
  d.narrow_cells(Space::kShared, 16);
}

void decode_plain(Decoder& d, Instruction& i) {
  d.expect(0);
  i.gather = Gather::kWarp;
}

void decode_wait(Decoder& d, Instruction& i) {
  d.expect(1);
  i.immediate = d.immediate(0);
  i.gather = Gather::kWarp;
}

}  // namespace

std::vector<int> wgmma_registers(const Instruction& i) {
  if (i.run != issue) return {};
  std::vector<int> slots = i.list;
  if (in_registers(i))
    slots.insert(slots.end(), &i.op[kFirstFragment], &i.op[kFirstFragment] + kFragmentRegisters);
  return slots;
}

void touch_registers(Warp& warp, const Instruction& i) {
  if (i.run == issue) return;
  for (int place : i.guarded) warp.unfenced[place] = kTouched;
}

void add_wgmma_opcodes(OpcodeTable& t) {
  t["wgmma.mma_async.m64nNk16.f32.bf16.bf16"] = {"", issue, decode_issue<2>};
  t["wgmma.mma_async.m64nNk8.f32.tf32.tf32"] = {"", issue, decode_issue<4>};
  t["wgmma.fence"] = {"", fence, decode_plain};
  t["wgmma.commit_group"] = {"", commit, decode_plain};
  t["wgmma.wait_group"] = {"", wait, decode_wait};
}

}  // namespace ptx
