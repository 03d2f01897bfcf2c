#include "parser.h"

#include <algorithm>
#include <map>

#include "decode.h"
#include "module.h"
#include "wgmma.h"

namespace ptx {

namespace {

u32 align(u32 offset, u32 alignment) { return (offset + alignment - 1) / alignment * alignment; }

// Bank and swizzle patterns repeat every 1024 bytes at most.
constexpr u32 kDynamicAlignment = 1024;

class EntryParser {
 public:
  EntryParser(const Module& module, const Entry& entry, Program& program)
      : module_(module), entry_(entry), program_(program), symbols_(program), decoder_(program, symbols_) {}

  void run() {
    program_.name = entry_.name;
    program_.files = module_.files;
    program_.max_threads = entry_.max_threads;
    parse_parameters();
    for (const Declaration& d : module_.shared) place_shared(d);
    place_variables();
    scan_shared();
    program_.shared_layout = align(program_.shared_layout, kDynamicAlignment);
    for (std::string_view name : dynamic_) symbols_.declare_address(name, program_.shared_layout);
    Cursor cursor(entry_.body);
    while (!cursor.done()) parse_statement(cursor);
    resolve();
    guard_registers();
  }

 private:
  struct Fixup {
    size_t instruction;
    std::string_view label;
    int line;
  };

  void parse_parameters() {
    Cursor cursor(entry_.parameters);
    while (!cursor.done()) {
      cursor.expect(".param");
      const Declaration d = parse_declaration(cursor);
      if (d.bytes() > 32764) fail(entry_.line, "parameter too large");
      const u32 offset = align(program_.parameter_bytes, d.alignment), size = static_cast<u32>(d.bytes());
      program_.parameters.push_back({std::string(d.name), offset, size});
      program_.parameter_bytes = offset + size;
      if (!cursor.done()) cursor.expect(",");
    }
  }

  void place_variables() {
    program_.variables = module_.variables;
    for (size_t i = 0; i < module_.variables.size(); ++i) {
      symbols_.declare_address(module_.variables[i].name, kVariableBase + (u64{i + 1} << kBufferShift));
    }
  }

  void place_shared(const Declaration& d) {
    if (d.is_array && (!d.has_size || d.elements == 0)) {
      dynamic_.push_back(d.name);
      return;
    }
    const u32 begin = align(program_.shared_layout, std::max(d.alignment, kRedZone)),
              size = static_cast<u32>(d.bytes());
    if (d.bytes() > 1 << 20) fail(entry_.line, "shared array too large");
    symbols_.declare_address(d.name, begin);
    program_.shared_ranges.push_back({begin, begin + size});
    program_.static_shared = align(program_.static_shared, d.alignment) + size;
    program_.shared_layout = begin + size + kRedZone;
  }

  // The start of dynamic shared memory must be known before the first instruction names it.
  void scan_shared() {
    Cursor cursor(entry_.body);
    while (!cursor.done()) {
      if (cursor.accept(".shared")) {
        place_shared(parse_declaration(cursor));
      } else {
        cursor.next();
      }
    }
  }

  void parse_statement(Cursor& cursor) {
    const Token& token = cursor.peek();
    if (token.is('{')) {
      cursor.next();
      symbols_.open_scope();
    } else if (token.is('}')) {
      cursor.next();
      if (symbols_.depth() == 1) fail(token.line, "unbalanced braces");
      symbols_.close_scope();
    } else if (token.is(';')) {
      cursor.next();
    } else if (cursor.peek(1).is(':')) {
      parse_label(cursor);
    } else if (token.text[0] == '.') {
      parse_directive(cursor);
    } else {
      parse_instruction(cursor);
    }
  }

  void parse_label(Cursor& cursor) {
    const Token& label = cursor.next();
    cursor.expect(":");
    if (cursor.peek().is(".branchtargets")) {
      cursor.next();
      for (const Token& token : cursor.until(";")) {
        if (!token.is(',')) tables_[label.text].push_back(token.text);
      }
      return;
    }
    if (!labels_.emplace(label.text, program_.code.size()).second) fail(label.line, "label defined twice");
  }

  void parse_directive(Cursor& cursor) {
    const Token& token = cursor.peek();
    if (token.is(".loc")) return parse_location(cursor);
    if (token.is(".file")) return parse_file_directive(cursor, program_.files);
    if (token.is(".reg")) return parse_registers(cursor);
    if (token.is(".local")) fail(token.line, "local memory (.local) is not supported");
    if (!token.is(".shared") && !token.is(".pragma") && !token.is(".extern")) {
      fail(token.line, "unsupported directive '" + std::string(token.text) + "'");
    }
    cursor.until(";");
  }

  void parse_location(Cursor& cursor) {
    const int line = cursor.next().line;
    file_ = static_cast<int>(cursor.number());
    source_line_ = static_cast<int>(cursor.number());
    while (!cursor.done() && cursor.peek().line == line) cursor.next();  // column, inlined_at
  }

  void parse_registers(Cursor& cursor) {
    cursor.next();
    const Token& type = cursor.next();
    const int bits = type.text[0] == '.' ? type_bits(type.text.substr(1)) : 0;
    if (bits == 0 || bits == 8) fail(type.line, "unsupported register type '" + std::string(type.text) + "'");
    Cursor names(cursor.until(";"));
    while (!names.done()) {
      const Token& name = names.next();
      if (names.accept("<")) {
        const u64 count = names.number();
        if (count > 1 << 20) fail(name.line, "too many registers");
        symbols_.declare_family(name.text, static_cast<int>(count), bits);
        names.expect(">");
      } else {
        symbols_.declare_register(name.text, bits);
      }
      if (!names.done()) names.expect(",");
    }
  }

  void parse_instruction(Cursor& cursor) {
    const int line = cursor.peek().line;
    const auto tokens = cursor.until(";");
    Origin origin;
    origin.ptx_line = line;
    origin.file = file_;
    origin.source_line = source_line_;
    const char* begin = tokens.front().text.data();
    const std::string_view last = tokens.back().text;
    origin.text = std::string(begin, last.data() + last.size() - begin);
    if (last.empty() || tokens.back().line > line + 8) fail(line, "missing ';'");
    program_.code.push_back(decoder_.decode(tokens, origin));
    named_.push_back(decoder_.named());
    const Flow flow = program_.code.back().flow;
    if (flow == Flow::kBranch || flow == Flow::kBranchTable) {
      fixups_.push_back({program_.code.size() - 1, last, line});
    }
    program_.origins.push_back(std::move(origin));
  }

  int target(std::string_view label, int line) {
    const auto it = labels_.find(label);
    if (it == labels_.end()) fail(line, "unknown label '" + std::string(label) + "'");
    return static_cast<int>(it->second);
  }

  void resolve() {
    for (const Fixup& fixup : fixups_) {
      Instruction& i = program_.code[fixup.instruction];
      if (i.flow == Flow::kBranch) {
        i.target = target(fixup.label, fixup.line);
        continue;
      }
      const auto table = tables_.find(fixup.label);
      if (table == tables_.end()) fail(fixup.line, "unknown branch table");
      for (std::string_view label : table->second) i.list.push_back(target(label, fixup.line));
    }
  }

  // Sets, for every instruction, the registers of wgmmas that it names.
  void guard_registers() {
    std::map<int, int> places;  // numbers by slot
    for (const Instruction& i : program_.code) {
      for (int slot : wgmma_registers(i)) places.emplace(slot, 0);
    }
    for (auto& [slot, place] : places) place = program_.guarded++;
    for (size_t at = 0; at < program_.code.size() && !places.empty(); ++at) {
      Instruction& i = program_.code[at];
      const std::vector<int> registers = wgmma_registers(i);
      for (int slot : registers.empty() ? named_[at] : registers) {
        if (const auto it = places.find(slot); it != places.end()) i.guarded.push_back(it->second);
      }
    }
  }

  const Module& module_;
  const Entry& entry_;
  Program& program_;
  Symbols symbols_;
  Decoder decoder_;
  std::vector<std::string_view> dynamic_;
  std::map<std::string_view, size_t> labels_;
  std::map<std::string_view, std::vector<std::string_view>> tables_;
  std::vector<Fixup> fixups_;
  std::vector<std::vector<int>> named_;  // slots, by instruction
  int file_ = 0, source_line_ = 0;
};

}  // namespace

Program parse(const std::string& text, const std::string& entry) {
  const std::vector<Token> tokens = tokenize(text);
  const Module module = parse_module(tokens);
  Program program;
  EntryParser(module, find_entry(module, entry), program).run();
  return program;
}

}  // namespace ptx
