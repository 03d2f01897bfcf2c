// The outline of a PTX module: its entries, module variables and source files.
#pragma once
#include <span>
#include <string>
#include <vector>

#include "lexer.h"
#include "program.h"

namespace ptx {

// Reads tokens in order.
class Cursor {
 public:
  explicit Cursor(std::span<const Token> tokens) : tokens_(tokens) {}

  bool done() const { return at_ >= tokens_.size(); }
  const Token& peek(size_t ahead = 0) const;
  const Token& next();
  bool accept(std::string_view text);
  void expect(std::string_view text);
  u64 number();
  // Returns the tokens up to `mark`, which is skipped.
  std::span<const Token> until(std::string_view mark);
  // Returns the tokens between the next bracket and the one that closes it.
  std::span<const Token> bracketed(char open, char close);
  void skip_line();

 private:
  std::span<const Token> tokens_;
  size_t at_ = 0;
};

// A declaration of a variable or a parameter, such as ".align 16 .b8 name[64]".
struct Declaration {
  std::string_view name, type;
  u32 alignment = 1, element_bytes = 0;
  u64 elements = 1;
  bool is_array = false, has_size = false;
  u64 bytes() const { return element_bytes * elements; }
};
Declaration parse_declaration(Cursor& cursor);

struct Entry {
  std::string name;
  std::span<const Token> parameters, body;
  int line = 0;
  u32 max_threads = 1024;  // threads of a block: .maxntid or .reqntid
};

struct Module {
  std::vector<Entry> entries;
  std::vector<Declaration> shared;  // at module scope; no size: dynamic
  std::vector<ModuleVariable> variables;
  std::vector<std::string> files;
};

Module parse_module(std::span<const Token> tokens);
const Entry& find_entry(const Module& module, const std::string& part);
void parse_file_directive(Cursor& cursor, std::vector<std::string>& files);

}  // namespace ptx
