// A decoded kernel, which the parser makes and the launch executes.
#pragma once
#include <array>
#include <string>
#include <vector>

#include "common.h"

namespace ptx {

struct Machine;
struct Instruction;
using Handler = void (*)(Machine&, const Instruction&, Mask);

// Effect of an instruction on the program counter.
enum class Flow : u8 { kNext, kBranch, kBranchTable, kExit, kBlockBarrier, kTrap };
// Lanes that must have arrived before an instruction executes.
enum class Gather : u8 { kNone, kMembers, kWarp };
enum class Space : u8 { kGlobal, kShared, kGeneric, kParam };
enum class BarrierResult : u8 { kNone, kPopc, kAnd, kOr };

// Register base + constant offset; base < 0: the offset alone.
struct Address {
  int base = -1;
  bool wide = true;  // a 64-bit base register
  s64 offset = 0;
};

struct Instruction {
  Handler run = nullptr;
  Flow flow = Flow::kNext;
  Gather gather = Gather::kNone;
  bool guard_negated = false;
  bool is_signed = false;    // loads sign-extend into a wider register
  u8 element_bytes = 0;      // memory: bytes of one element
  u8 vector = 1;             // memory: elements of one access
  u8 register_bytes = 0;     // memory: bytes of one register operand
  int guard = -1;            // predicate slot
  int members = -1;          // slot of the member mask (Gather::kMembers)
  int target = -1;           // Flow::kBranch: instruction index
  s64 immediate = 0;         // meaning depends on the opcode
  std::array<int, 16> op{};  // register slots: byte offsets into the register file
  Address address, source;   // cp.async has two addresses
  std::vector<int> list;     // wgmma accumulators, branch table targets
  std::vector<int> guarded;  // registers of wgmmas that the instruction names, numbered from 0
};

// Origin of an instruction in the text; separate from the data that the execution loop reads.
struct Origin {
  std::string opcode;  // spelling in the PTX text
  std::string text;
  int ptx_line = 0;
  int file = 0;
  int source_line = 0;
  Space space = Space::kGlobal;
  bool touches_memory = false;
};

struct Parameter {
  std::string name;
  u32 offset = 0, size = 0;
};

struct SharedRange {
  u32 begin = 0, end = 0;
};

// A register-file constant, the same in every lane.
struct Constant {
  int slot = 0;
  int bits = 0;
  u64 value = 0;
};

struct SpecialRegister {
  std::string name;
  int slot = 0;
};

// A .global or .const array at module scope.
struct ModuleVariable {
  std::string name;
  bool writable = false;
  std::vector<u8> bytes;
};

struct Program {
  std::string name;
  std::vector<Instruction> code;
  std::vector<Origin> origins;
  std::vector<std::string> files;  // by .file number
  std::vector<Parameter> parameters;
  u32 parameter_bytes = 0;
  u32 max_threads = 1024;  // threads of a block
  std::vector<Constant> constants;
  std::vector<SpecialRegister> specials;
  std::vector<SharedRange> shared_ranges;
  std::vector<ModuleVariable> variables;
  u32 static_shared = 0;   // declared bytes
  u32 shared_layout = 0;   // bytes with the red zones; dynamic shared memory begins there
  int register_bytes = 0;  // register file of one warp
  int guarded = 0;         // registers that wgmmas accumulate in or read
  // Shadow cells need be no finer than the narrowest access of the kernel (log2 of bytes).
  int global_cell_shift = 4, shared_cell_shift = 4;
};

// Invented addresses.  Buffers are 2^36 apart; module variables and the shared window are far above them.
constexpr int kBufferShift = 36;
constexpr u64 kVariableBase = u64{1} << 56;
constexpr u64 kSharedWindow = u64{1} << 60;
constexpr u32 kRedZone = 128;

}  // namespace ptx
