#include "module.h"

#include <algorithm>

#include "symbols.h"

namespace ptx {

const Token& Cursor::peek(size_t ahead) const {
  static const Token kEnd{};
  return at_ + ahead < tokens_.size() ? tokens_[at_ + ahead] : kEnd;
}

const Token& Cursor::next() {
  if (done()) fail(tokens_.empty() ? 0 : tokens_.back().line, "unexpected end of text");
  return tokens_[at_++];
}

bool Cursor::accept(std::string_view text) {
  if (!peek().is(text)) return false;
  ++at_;
  return true;
}

void Cursor::expect(std::string_view text) {
  const Token& token = next();
  if (!token.is(text))
    fail(token.line, "expected '" + std::string(text) + "', not '" + std::string(token.text) + "'");
}

u64 Cursor::number() {
  const Token& token = next();
  u64 value = 0;
  if (!parse_number(token.text, 64, value))
    fail(token.line, "expected a number, not '" + std::string(token.text) + "'");
  return value;
}

std::span<const Token> Cursor::until(std::string_view mark) {
  const size_t begin = at_;
  while (!next().is(mark)) {
  }
  return tokens_.subspan(begin, at_ - 1 - begin);
}

std::span<const Token> Cursor::bracketed(char open, char close) {
  expect(std::string_view(&open, 1));
  const size_t begin = at_;
  for (int depth = 1; depth;) {
    const Token& token = next();
    depth += token.is(open) - token.is(close);
  }
  return tokens_.subspan(begin, at_ - 1 - begin);
}

void Cursor::skip_line() {
  const int line = peek().line;
  while (!done() && peek().line == line) ++at_;
}

Declaration parse_declaration(Cursor& cursor) {
  Declaration d;
  while (!cursor.done() && cursor.peek().text[0] == '.') {
    const Token& token = cursor.next();
    const std::string_view word = token.text.substr(1);
    if (word == "align") {
      d.alignment = static_cast<u32>(std::clamp<u64>(cursor.number(), 1, 1024));
    } else if (const int bits = type_bits(word); bits >= 8) {
      d.type = word;
      d.element_bytes = bits / 8;
    } else if (word != "ptr" && word != "global" && word != "const" && word != "shared") {
      fail(token.line, "unsupported attribute '" + std::string(token.text) + "'");
    }
  }
  const Token& name = cursor.next();
  d.name = name.text;
  if (!d.element_bytes) fail(name.line, "declaration of '" + std::string(name.text) + "' without a type");
  while (cursor.accept("[")) {
    d.is_array = true;
    if (cursor.accept("]")) return d;
    d.has_size = true;
    d.elements *= cursor.number();
    cursor.expect("]");
  }
  if (d.bytes() > u64{1} << 32) fail(name.line, "declaration too large");
  d.alignment = std::max(d.alignment, d.element_bytes);
  return d;
}

void parse_file_directive(Cursor& cursor, std::vector<std::string>& files) {
  cursor.expect(".file");
  const int line = cursor.peek().line;
  const u64 index = cursor.number();
  std::string_view name = cursor.next().text;
  if (name.size() >= 2 && name[0] == '"') name = name.substr(1, name.size() - 2);
  if (index > 10000) fail(line, "bad file number");
  if (files.size() <= index) files.resize(index + 1);
  files[index] = std::string(name);
  // ", timestamp, size" may follow.
  while (cursor.peek().line == line) cursor.next();
}

namespace {

std::vector<u8> initial_bytes(Cursor& cursor, const Declaration& d) {
  std::vector<u8> bytes(d.bytes());
  if (!cursor.accept("=")) return bytes;
  const int line = cursor.peek().line;
  std::vector<std::string_view> values;
  if (cursor.peek().is('{')) {
    for (const Token& token : cursor.bracketed('{', '}')) {
      if (!token.is(',')) values.push_back(token.text);
    }
  } else {
    values.push_back(cursor.next().text);
  }
  if (values.size() > d.elements) fail(line, "too many initial values");
  for (size_t i = 0; i < values.size(); ++i) {
    u64 value = 0;
    if (!parse_number(values[i], d.element_bytes * 8, value)) fail(line, "unsupported initial value");
    std::memcpy(bytes.data() + i * d.element_bytes, &value, d.element_bytes);
  }
  return bytes;
}

void parse_variable(Cursor& cursor, Module& module) {
  const Token& space = cursor.next();
  const Declaration d = parse_declaration(cursor);
  if (space.is(".shared")) {
    module.shared.push_back(d);
  } else {
    if (d.is_array && !d.has_size) fail(space.line, "variable without a size");
    module.variables.push_back({std::string(d.name), space.is(".global"), initial_bytes(cursor, d)});
  }
  cursor.expect(";");
}

void parse_performance_directive(Cursor& cursor, Entry& entry) {
  const Token& token = cursor.next();
  if (!token.is(".maxntid") && !token.is(".reqntid")) return;
  u64 threads = cursor.number();
  while (cursor.accept(",")) threads *= std::min<u64>(cursor.number(), 1024);
  entry.max_threads = static_cast<u32>(std::min<u64>(threads, 1024));
}

void parse_entry(Cursor& cursor, Module& module) {
  Entry entry;
  const Token& name = cursor.next();
  entry.name = std::string(name.text);
  entry.line = name.line;
  if (cursor.peek().is('(')) entry.parameters = cursor.bracketed('(', ')');
  while (!cursor.peek().is('{')) parse_performance_directive(cursor, entry);
  entry.body = cursor.bracketed('{', '}');
  module.entries.push_back(entry);
}

// Skips `.extern .func (.param .b32 r) vprintf(...);` or a function with a body.  Calls are refused as
// unsupported opcodes.
void skip_function(Cursor& cursor) {
  while (!cursor.peek().is(';') && !cursor.peek().is('{')) cursor.next();
  if (!cursor.accept(";")) cursor.bracketed('{', '}');
}

void parse_directive(Cursor& cursor, Module& module) {
  const Token& token = cursor.peek();
  if (token.is(".file")) return parse_file_directive(cursor, module.files);
  if (token.is(".global") || token.is(".const") || token.is(".shared")) return parse_variable(cursor, module);
  cursor.next();
  if (token.is(".entry")) return parse_entry(cursor, module);
  if (token.is(".func")) return skip_function(cursor);
  if (token.is(".section")) {
    cursor.next();
    cursor.bracketed('{', '}');
  } else if (token.is(".version") || token.is(".target") || token.is(".address_size") || token.is(".loc")) {
    cursor.skip_line();
  } else if (token.is(".pragma")) {
    cursor.until(";");
  } else if (!token.is(".visible") && !token.is(".weak") && !token.is(".extern") && !token.is(".common")) {
    fail(token.line, "unsupported directive '" + std::string(token.text) + "'");
  }
}

}  // namespace

Module parse_module(std::span<const Token> tokens) {
  Module module;
  Cursor cursor(tokens);
  while (!cursor.done()) parse_directive(cursor, module);
  return module;
}

const Entry& find_entry(const Module& module, const std::string& part) {
  const Entry* match = nullptr;
  std::string names;
  int count = 0;
  for (const Entry& entry : module.entries) {
    names += " " + entry.name;
    if (entry.name == part) return entry;
    if (entry.name.find(part) == std::string::npos) continue;
    match = &entry;
    ++count;
  }
  if (count != 1) {
    throw ParseError("entry '" + part + "' matches " + std::to_string(count) +
                     " kernels; the module has:" + names);
  }
  return *match;
}

}  // namespace ptx
