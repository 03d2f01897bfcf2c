// Branches, exits, block barriers and fences.  The launch loop acts on Instruction::flow.
#include "decode.h"
#include "opcodes.h"

namespace ptx {

namespace {

void nothing(Machine&, const Instruction&, Mask) {}

// The label is resolved by the parser, which knows the instruction's index.
void decode_branch(Decoder& d, Instruction& i) {
  d.expect(1);
  d.word(0);
  i.flow = Flow::kBranch;
}

void decode_branch_table(Decoder& d, Instruction& i) {
  d.expect(2);
  i.op[0] = d.source(0, 32);
  d.word(1);
  i.flow = Flow::kBranchTable;
}

void decode_exit(Decoder& d, Instruction& i) {
  d.expect(0);
  i.flow = Flow::kExit;
}

void decode_trap(Decoder& d, Instruction& i) {
  d.expect(0);
  i.flow = Flow::kTrap;
}

// Reads barrier 0 with all threads of the block.  op[1]: slot of the thread count, < 0: no count
void read_barrier(Decoder& d, Instruction& i, size_t at, size_t operands) {
  if (d.count() != operands && d.count() != operands + 1) d.reject("wrong number of operands");
  if (d.immediate(at) != 0) d.reject("only barrier 0 is supported");
  i.op[1] = d.count() > operands ? d.source(at + 1, 32) : -1;
  i.flow = Flow::kBlockBarrier;
  i.gather = Gather::kWarp;
}

void decode_barrier(Decoder& d, Instruction& i) { read_barrier(d, i, 0, 1); }

// op[0]: result; op[2]: predicate
template <BarrierResult kResult>
void decode_barrier_reduction(Decoder& d, Instruction& i) {
  read_barrier(d, i, 1, 3);
  i.op[0] = d.destination(0, kResult == BarrierResult::kPopc ? 32 : 1);
  i.op[2] = d.source(d.count() - 1, 1);
  i.immediate = static_cast<s64>(kResult);
}

}  // namespace

void add_flow_opcodes(OpcodeTable& t) {
  t["bra"] = {"", nothing, decode_branch};
  t["brx.idx"] = {"", nothing, decode_branch_table};
  t["ret"] = {"", nothing, decode_exit};
  t["exit"] = {"", nothing, decode_exit};
  t["trap"] = {"", nothing, decode_trap};
  t["bar.sync"] = {"", nothing, decode_barrier};
  t["bar.red.popc.u32"] = {"", nothing, decode_barrier_reduction<BarrierResult::kPopc>};
  t["bar.red.and.pred"] = {"", nothing, decode_barrier_reduction<BarrierResult::kAnd>};
  t["bar.red.or.pred"] = {"", nothing, decode_barrier_reduction<BarrierResult::kOr>};
  t["fence"] = {"", nothing};
  t["membar"] = {"", nothing};
}

const OpcodeTable& opcode_table() {
  static const OpcodeTable table = [] {
    OpcodeTable t;
    for (auto add :
         {add_integer_opcodes, add_bit_opcodes, add_float_opcodes, add_bfloat_opcodes, add_predicate_opcodes,
          add_convert_opcodes, add_move_opcodes, add_memory_opcodes, add_atomic_opcodes, add_async_opcodes,
          add_matrix_opcodes, add_wgmma_opcodes, add_warp_opcodes, add_flow_opcodes}) {
      add(t);
    }
    return t;
  }();
  return table;
}

}  // namespace ptx
