// The table of opcodes, and templates that make handlers from plain functions.
#pragma once
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>

#include "machine.h"

namespace ptx {

class Decoder;

// Either `operands` names every operand's register width, one letter each, capital for a destination
// (P predicate, H 16, R 32, D 64 bits), or `decode` reads the operands itself.
struct Opcode {
  std::string operands;
  Handler run = nullptr;
  void (*decode)(Decoder&, Instruction&) = nullptr;
};

using OpcodeTable = std::unordered_map<std::string, Opcode>;

// Returns all opcodes by canonical spelling, see canonical() in decode.h.
const OpcodeTable& opcode_table();

void add_integer_opcodes(OpcodeTable& table);
void add_bit_opcodes(OpcodeTable& table);
void add_float_opcodes(OpcodeTable& table);
void add_bfloat_opcodes(OpcodeTable& table);
void add_predicate_opcodes(OpcodeTable& table);
void add_convert_opcodes(OpcodeTable& table);
void add_move_opcodes(OpcodeTable& table);
void add_memory_opcodes(OpcodeTable& table);
void add_atomic_opcodes(OpcodeTable& table);
void add_async_opcodes(OpcodeTable& table);
void add_matrix_opcodes(OpcodeTable& table);
void add_wgmma_opcodes(OpcodeTable& table);
void add_warp_opcodes(OpcodeTable& table);
void add_flow_opcodes(OpcodeTable& table);

// Returns the letter of a register of a T.
template <class T>
constexpr char letter(bool destination) {
  const char small = sizeof(T) == 2 ? 'h' : sizeof(T) == 4 ? 'r' : 'd';
  return destination ? static_cast<char>(small - 'a' + 'A') : small;
}

template <class F, class Signature>
struct Lanewise;

// Runs R f(A...) in every active lane.  Inactive lanes are computed and dropped, so that the loops vectorise:
// f must be defined for all arguments.
template <class F, class R, class... A>
struct Lanewise<F, R (*)(A...)> {
  static std::string operands() { return {letter<R>(true), letter<A>(false)...}; }

  static void run(Machine& m, const Instruction& i, Mask mask) {
    apply(m, i, mask, std::index_sequence_for<A...>{});
  }

 private:
  template <size_t... N>
  static void apply(Machine& m, const Instruction& i, Mask mask, std::index_sequence<N...>) {
    loop(m.lanes<R>(i.op[0]), mask, m.lanes<const A>(i.op[N + 1])...);
  }

  static void loop(R* result, Mask mask, const A*... a) {
    // Slots are either the same or disjoint, so no lane depends on another.
    if (mask == kAllLanes) {
#pragma GCC ivdep
      for (int lane = 0; lane < kWarpSize; ++lane) result[lane] = F()(a[lane]...);
      return;
    }
    R value[kWarpSize];
    for (int lane = 0; lane < kWarpSize; ++lane) value[lane] = F()(a[lane]...);
    for (int lane = 0; lane < kWarpSize; ++lane) result[lane] = mask >> lane & 1 ? value[lane] : result[lane];
  }
};

// `f` is a lambda without captures; its types give the register widths.
template <class F>
Opcode lanewise(F f) {
  using L = Lanewise<F, decltype(+f)>;
  return {L::operands(), &L::run, nullptr};
}

template <class T>
std::string type_name() {
  const char kind = std::is_floating_point_v<T> ? 'f' : std::is_signed_v<T> ? 's' : 'u';
  return kind + std::to_string(sizeof(T) * 8);
}

}  // namespace ptx
