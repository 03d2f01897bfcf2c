#include "decode.h"

#include <algorithm>
#include <bit>

#include "opcodes.h"

namespace ptx {

void Decoder::reject(const std::string& why) const { fail(origin_->ptx_line, why + ": " + origin_->text); }

const Operand& Decoder::operand(size_t index) const {
  if (index >= operands_.size()) reject("too few operands");
  return operands_[index];
}

void Decoder::expect(size_t operands) const {
  if (operands_.size() != operands) reject("expected " + std::to_string(operands) + " operands");
}

bool Decoder::has(std::string_view qualifier) const {
  for (size_t at = spelling_.find(qualifier); at != std::string_view::npos;
       at = spelling_.find(qualifier, at + 1)) {
    const size_t end = at + qualifier.size();
    if (at > 0 && spelling_[at - 1] == '.' && (end == spelling_.size() || spelling_[end] == '.')) return true;
  }
  return false;
}

int Decoder::vector_width() const { return has("v8") ? 8 : has("v4") ? 4 : has("v2") ? 2 : 1; }

std::string_view Decoder::word(size_t index) const {
  const Operand& o = operand(index);
  if (o.kind != Operand::Kind::kWord || o.negated || !o.second.empty()) reject("expected a plain operand");
  return o.word;
}

std::vector<std::string_view> Decoder::vector(size_t index) const {
  const Operand& o = operand(index);
  if (o.kind == Operand::Kind::kVector) return o.elements;
  return {word(index)};
}

s64 Decoder::immediate(size_t index) const {
  u64 value = 0;
  if (!parse_number(word(index), 64, value)) reject("expected a number");
  return static_cast<s64>(value);
}

int Decoder::destination(std::string_view word, int bits, int* actual_bits) {
  if (word == "_") return symbols_.scratch(bits ? bits : 64);
  const Register r = symbols_.find_register(word);
  if (r.slot < 0) reject("unknown register '" + std::string(word) + "'");
  if (bits && r.bits != bits) {
    reject("operand '" + std::string(word) + "' has " + std::to_string(r.bits) + " bits, not " +
           std::to_string(bits));
  }
  if (actual_bits) *actual_bits = r.bits;
  named_.push_back(r.slot);
  return r.slot;
}

int Decoder::source(std::string_view word, int bits, int* actual_bits) {
  u64 value = 0;
  const int constant_bits = bits ? bits : 64;
  if (actual_bits) *actual_bits = constant_bits;
  if (parse_number(word, constant_bits, value)) return symbols_.constant(value, constant_bits);
  if (!word.empty() && word[0] == '%') {
    const int special = symbols_.special(word);
    if (special >= 0) {
      if (actual_bits) *actual_bits = 32;
      if (bits && bits != 32) reject("a special register has 32 bits");
      return special;
    }
    return destination(word, bits, actual_bits);
  }
  if (const u64* address = symbols_.find_address(word)) return symbols_.constant(*address, constant_bits);
  if (const Parameter* p = symbols_.find_parameter(word)) return symbols_.constant(p->offset, constant_bits);
  return destination(word, bits, actual_bits);
}

int Decoder::source(size_t index, int bits) {
  if (bits == 1) return source_predicate(operand(index));
  return source(word(index), bits);
}

int Decoder::source_predicate(const Operand& o) {
  if (o.kind != Operand::Kind::kWord || !o.second.empty()) reject("expected a predicate");
  return source(o.word, 1) | (o.negated ? 1 : 0);
}

Address Decoder::address(size_t index, Space space) {
  const Operand& o = operand(index);
  if (o.kind != Operand::Kind::kAddress) reject("expected an address");
  Address result;
  result.offset = o.offset;
  const Parameter* parameter = space == Space::kParam ? symbols_.find_parameter(o.word) : nullptr;
  u64 value = 0;
  if (parameter) {
    result.offset += parameter->offset;
  } else if (const u64* base = symbols_.find_address(o.word)) {
    result.offset += static_cast<s64>(*base);
  } else if (parse_number(o.word, 64, value)) {
    result.offset += static_cast<s64>(value);
  } else {
    int bits = 0;
    result.base = destination(o.word, 0, &bits);
    if (bits != 32 && bits != 64) reject("an address register has 32 or 64 bits");
    result.wide = bits == 64;
  }
  return result;
}

void Decoder::narrow_cells(Space space, int bytes) {
  const int shift = std::countr_zero(static_cast<u32>(std::min(bytes, 16)));
  if (space != Space::kShared) program_.global_cell_shift = std::min(program_.global_cell_shift, shift);
  if (space != Space::kGlobal) program_.shared_cell_shift = std::min(program_.shared_cell_shift, shift);
}

Operand Decoder::parse_address(std::span<const Token> t, size_t& at) {
  Operand o;
  o.kind = Operand::Kind::kAddress;
  if (++at >= t.size()) reject("bad address");
  o.word = t[at++].text;
  if (at < t.size() && t[at].is('+')) ++at;
  if (at < t.size() && !t[at].is(']')) {
    u64 offset = 0;
    if (!parse_number(t[at].text, 64, offset)) reject("bad address offset");
    o.offset = static_cast<s64>(offset);
    ++at;
  }
  if (at >= t.size() || !t[at].is(']')) reject("bad address");
  ++at;
  return o;
}

Operand Decoder::parse_vector(std::span<const Token> t, size_t& at) {
  Operand o;
  o.kind = Operand::Kind::kVector;
  do {
    if (++at >= t.size()) reject("bad vector");
    o.elements.push_back(t[at++].text);
  } while (at < t.size() && t[at].is(','));
  if (at >= t.size() || !t[at].is('}')) reject("bad vector");
  ++at;
  return o;
}

Operand Decoder::parse_operand(std::span<const Token> t, size_t& at) {
  if (t[at].is('[')) return parse_address(t, at);
  if (t[at].is('{')) return parse_vector(t, at);
  Operand o;
  if (t[at].is('!')) o.negated = true, ++at;
  if (at >= t.size() || t[at].text.size() == 0) reject("missing operand");
  o.word = t[at++].text;
  if (at + 1 < t.size() && t[at].is('|')) {
    o.second = t[at + 1].text;
    at += 2;
  }
  return o;
}

void Decoder::parse_operands(std::span<const Token> t) {
  operands_.clear();
  for (size_t at = 0; at < t.size();) {
    operands_.push_back(parse_operand(t, at));
    if (at == t.size()) break;
    if (!t[at].is(',') || at + 1 == t.size()) reject("expected ','");
    ++at;
  }
}

size_t Decoder::read_guard(std::span<const Token> t, Instruction& instruction) {
  if (!t[0].is('@')) return 0;
  size_t at = 1;
  if (at < t.size() && t[at].is('!')) instruction.guard_negated = true, ++at;
  if (at + 1 >= t.size()) reject("bad guard");
  instruction.guard = destination(t[at].text, 1);
  return at + 1;
}

void Decoder::read_operands(const std::string& letters, Instruction& instruction) {
  expect(letters.size());
  for (size_t k = 0; k < letters.size(); ++k) {
    const char small = static_cast<char>(letters[k] | 0x20);
    const int bits = small == 'p' ? 1 : small == 'h' ? 16 : small == 'r' ? 32 : 64;
    instruction.op[k] = letters[k] == small ? source(k, bits) : destination(k, bits);
  }
}

const Opcode& Decoder::find_opcode() {
  const Opcode*& known = found_[spelling_];
  if (!known) {
    const auto entry = opcode_table().find(canonical(spelling_));
    if (entry == opcode_table().end()) reject("unsupported opcode '" + std::string(spelling_) + "'");
    known = &entry->second;
  }
  return *known;
}

Instruction Decoder::decode(std::span<const Token> tokens, Origin& origin) {
  origin_ = &origin;
  named_.clear();
  Instruction instruction;
  const size_t at = read_guard(tokens, instruction);
  spelling_ = tokens[at].text;
  origin.opcode = std::string(spelling_);
  const Opcode& opcode = find_opcode();
  parse_operands(tokens.subspan(at + 1));
  instruction.run = opcode.run;
  if (opcode.decode) {
    opcode.decode(*this, instruction);
  } else {
    read_operands(opcode.operands, instruction);
  }
  return instruction;
}

}  // namespace ptx
