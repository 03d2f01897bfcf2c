// Exchange between the lanes of a warp: shfl, vote, redux, elect, bar.warp.sync.
#include <algorithm>

#include "decode.h"
#include "opcodes.h"

namespace ptx {

namespace {

enum ShuffleMode { kUp, kDown, kButterfly, kIndex };
enum VoteMode { kAny, kAll, kUniform, kBallot };

// The scheduler has waited for the members that can still arrive; a missing member is a fault of the program.
void check_members(Machine& m, const Instruction& i, Mask mask) {
  const u32* members = m.lanes<u32>(i.members);
  for_lanes(mask, [&](int lane) {
    const bool self = members[lane] >> lane & 1;
    if (!self || (members[lane] & m.warp->alive & ~mask))
      m.report("warp instruction: member lanes not converged", lane);
  });
}

// op: d, a, b, c, the member mask; op[5]: predicate slot or < 0; immediate: the mode
void shuffle(Machine& m, const Instruction& i, Mask mask) {
  check_members(m, i, mask);
  u32 a[kWarpSize], source_ok = 0;
  std::memcpy(a, m.lanes<u32>(i.op[1]), sizeof a);
  const u32 *b = m.lanes<u32>(i.op[2]), *c = m.lanes<u32>(i.op[3]);
  u32* d = m.lanes<u32>(i.op[0]);
  u32 result[kWarpSize];
  for_lanes(mask, [&](int lane) {
    const int offset = b[lane] & 31, segment = c[lane] >> 8 & 31, clamp = c[lane] & 31;
    const int last = (lane & segment) | (clamp & ~segment), first = lane & segment;
    int from = first | (offset & ~segment);
    if (i.immediate == kUp) from = lane - offset;
    if (i.immediate == kDown) from = lane + offset;
    if (i.immediate == kButterfly) from = lane ^ offset;
    const bool ok = i.immediate == kUp ? from >= last : from <= last;
    if (!ok) from = lane;
    if (!(mask >> from & 1)) m.report("shfl.sync: source lane inactive", lane);
    result[lane] = a[from];
    source_ok |= static_cast<u32>(ok) << lane;
  });
  for_lanes(mask, [&](int lane) { d[lane] = result[lane]; });
  if (i.op[5] >= 0) m.set_predicate(i.op[5], source_ok, mask);
}

template <ShuffleMode kMode>
void decode_shuffle(Decoder& d, Instruction& i) {
  d.expect(5);
  const Operand& result = d.operand(0);
  if (result.kind != Operand::Kind::kWord) d.reject("expected a register");
  i.op[0] = d.destination(result.word, 32);
  i.op[5] = result.second.empty() ? -1 : d.destination(result.second, 1);
  for (size_t k = 1; k < 5; ++k) i.op[k] = d.source(k, 32);
  i.members = i.op[4];
  i.gather = Gather::kMembers;
  i.immediate = kMode;
}

// op: d, a
template <VoteMode kMode>
void vote(Machine& m, const Instruction& i, Mask mask) {
  check_members(m, i, mask);
  const Mask yes = m.predicate(i.op[1]) & mask;
  if (kMode == kBallot) {
    u32* d = m.lanes<u32>(i.op[0]);
    for_lanes(mask, [&](int lane) { d[lane] = yes; });
    return;
  }
  const bool all = yes == mask, any = yes != 0;
  const bool result = kMode == kAll ? all : kMode == kAny ? any : all || !any;
  m.set_predicate(i.op[0], result ? kAllLanes : 0, mask);
}

template <VoteMode kMode>
void decode_vote(Decoder& d, Instruction& i) {
  d.expect(3);
  i.op[0] = d.destination(0, kMode == kBallot ? 32 : 1);
  i.op[1] = d.source(1, 1);
  i.members = d.source(2, 32);
  i.gather = Gather::kMembers;
}

template <class T, class F>
void reduce(Machine& m, const Instruction& i, Mask mask) {
  check_members(m, i, mask);
  T *d = m.lanes<T>(i.op[0]), *a = m.lanes<T>(i.op[1]);
  T sum = a[std::countr_zero(mask)];
  for_lanes(mask & (mask - 1), [&](int lane) { sum = F()(sum, a[lane]); });
  for_lanes(mask, [&](int lane) { d[lane] = sum; });
}

void decode_reduce(Decoder& d, Instruction& i) {
  d.expect(3);
  i.op[0] = d.destination(0, 32);
  i.op[1] = d.source(1, 32);
  i.members = d.source(2, 32);
  i.gather = Gather::kMembers;
}

template <class T, class F>
void add_reduce(OpcodeTable& t, const std::string& name, F) {
  t["redux.sync." + name] = {"", reduce<T, F>, decode_reduce};
}

void elect(Machine& m, const Instruction& i, Mask mask) {
  check_members(m, i, mask);
  const u32 leader = std::countr_zero(mask);
  u32* d = m.lanes<u32>(i.op[0]);
  for_lanes(mask, [&](int lane) { d[lane] = leader; });
  m.set_predicate(i.op[1], 1u << leader, mask);
}

void decode_elect(Decoder& d, Instruction& i) {
  d.expect(2);
  i.op[0] = d.destination(d.operand(0).word, 32);
  i.op[1] = d.destination(d.operand(0).second, 1);
  i.members = d.source(1, 32);
  i.gather = Gather::kMembers;
}

void active_mask(Machine& m, const Instruction& i, Mask mask) {
  u32* d = m.lanes<u32>(i.op[0]);
  for_lanes(mask, [&](int lane) { d[lane] = mask; });
}

// Orders the accesses of the whole warp; a barrier of only some lanes counts as ordering nothing.
void warp_barrier(Machine& m, const Instruction& i, Mask mask) {
  check_members(m, i, mask);
  if (!(m.warp->alive & ~mask)) ++m.warp->step;
}

void decode_warp_barrier(Decoder& d, Instruction& i) {
  d.expect(1);
  i.members = d.source(0, 32);
  i.gather = Gather::kMembers;
}

}  // namespace

void add_warp_opcodes(OpcodeTable& t) {
  t["shfl.sync.up.b32"] = {"", shuffle, decode_shuffle<kUp>};
  t["shfl.sync.down.b32"] = {"", shuffle, decode_shuffle<kDown>};
  t["shfl.sync.bfly.b32"] = {"", shuffle, decode_shuffle<kButterfly>};
  t["shfl.sync.idx.b32"] = {"", shuffle, decode_shuffle<kIndex>};
  t["vote.sync.any.pred"] = {"", vote<kAny>, decode_vote<kAny>};
  t["vote.sync.all.pred"] = {"", vote<kAll>, decode_vote<kAll>};
  t["vote.sync.uni.pred"] = {"", vote<kUniform>, decode_vote<kUniform>};
  t["vote.sync.ballot.b32"] = {"", vote<kBallot>, decode_vote<kBallot>};
  add_reduce<u32>(t, "add.u32", [](u32 a, u32 b) { return a + b; });
  add_reduce<u32>(t, "add.s32", [](u32 a, u32 b) { return a + b; });
  add_reduce<u32>(t, "min.u32", [](u32 a, u32 b) { return std::min(a, b); });
  add_reduce<u32>(t, "max.u32", [](u32 a, u32 b) { return std::max(a, b); });
  add_reduce<s32>(t, "min.s32", [](s32 a, s32 b) { return std::min(a, b); });
  add_reduce<s32>(t, "max.s32", [](s32 a, s32 b) { return std::max(a, b); });
  add_reduce<u32>(t, "and.b32", [](u32 a, u32 b) { return a & b; });
  add_reduce<u32>(t, "or.b32", [](u32 a, u32 b) { return a | b; });
  add_reduce<u32>(t, "xor.b32", [](u32 a, u32 b) { return a ^ b; });
  t["elect.sync"] = {"", elect, decode_elect};
  t["activemask.b32"] = {"R", active_mask};
  t["bar.warp.sync"] = {"", warp_barrier, decode_warp_barrier};
}

}  // namespace ptx
