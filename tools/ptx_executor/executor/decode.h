// Converts the tokens of an instruction to an Instruction.
#pragma once
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lexer.h"
#include "program.h"
#include "symbols.h"

namespace ptx {

// An operand: a word ("%r1", "16", "%p1|%p2"), a vector in braces, or an address in brackets.
struct Operand {
  enum class Kind { kWord, kVector, kAddress } kind = Kind::kWord;
  bool negated = false;     // !%p
  std::string_view word;    // the word, or the base of an address
  std::string_view second;  // after '|'
  s64 offset = 0;           // offset of an address
  std::vector<std::string_view> elements;
};

// Returns a spelling without the qualifiers that the executor ignores (cache hints, .ftz, .sync.aligned of
// one-form opcodes) and with types merged if only their width matters.
std::string canonical(std::string_view spelling);

struct Opcode;

class Decoder {
 public:
  Decoder(Program& program, Symbols& symbols) : program_(program), symbols_(symbols) {}

  // `tokens`: from the guard or opcode up to, not including, the semicolon.
  Instruction decode(std::span<const Token> tokens, Origin& origin);
  // Slots of the registers that the latest instruction names.
  const std::vector<int>& named() const { return named_; }

  // Functions for the decode functions of opcodes.
  size_t count() const { return operands_.size(); }
  const Operand& operand(size_t index) const;
  bool has(std::string_view qualifier) const;
  std::string_view spelling() const { return spelling_; }
  int vector_width() const;  // of a .v2, .v4 or .v8 qualifier
  // Return slots.  `bits` 0: any width, returned through `actual_bits`.
  int destination(std::string_view word, int bits, int* actual_bits = nullptr);
  int source(std::string_view word, int bits, int* actual_bits = nullptr);
  int source_predicate(const Operand& operand);
  int destination(size_t index, int bits) { return destination(word(index), bits); }
  int source(size_t index, int bits);
  std::string_view word(size_t index) const;
  std::vector<std::string_view> vector(size_t index) const;  // a word counts as a vector of one
  Address address(size_t index, Space space);
  s64 immediate(size_t index) const;
  void expect(size_t operands) const;
  void narrow_cells(Space space, int bytes);
  Origin& origin() { return *origin_; }
  const Program& program() const { return program_; }
  [[noreturn]] void reject(const std::string& why) const;

 private:
  void parse_operands(std::span<const Token> tokens);
  Operand parse_operand(std::span<const Token> tokens, size_t& at);
  Operand parse_vector(std::span<const Token> tokens, size_t& at);
  Operand parse_address(std::span<const Token> tokens, size_t& at);
  void read_operands(const std::string& letters, Instruction& instruction);
  const Opcode& find_opcode();
  size_t read_guard(std::span<const Token> tokens, Instruction& instruction);

  Program& program_;
  Symbols& symbols_;
  std::vector<Operand> operands_;
  std::vector<int> named_;
  std::string_view spelling_;
  std::unordered_map<std::string_view, const Opcode*> found_;  // by spelling in the text
  Origin* origin_ = nullptr;
};

}  // namespace ptx
