// Register slots, constants and names of one kernel.
#pragma once
#include <map>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace ptx {

struct Register {
  int slot = -1;
  int bits = 0;
};

// A register file slot is 32 lanes side by side; a predicate is one 32-bit mask.
class Symbols {
 public:
  explicit Symbols(Program& program) : program_(program) { scopes_.resize(1); }

  void open_scope() { scopes_.emplace_back(); }
  void close_scope() { scopes_.pop_back(); }
  size_t depth() const { return scopes_.size(); }

  void declare_register(std::string_view name, int bits);
  void declare_family(std::string_view prefix, int count, int bits);
  void declare_address(std::string_view name, u64 address) { addresses_[std::string(name)] = address; }

  Register find_register(std::string_view name);  // slot < 0: no such register
  const u64* find_address(std::string_view name) const;
  const Parameter* find_parameter(std::string_view name) const;

  int constant(u64 value, int bits);
  int special(std::string_view name);  // < 0: no such special register
  int scratch(int bits);               // written, never read

 private:
  struct Family {
    int count = 0, bits = 0;
    std::vector<int> slots;  // allocated when first named, so unused registers cost nothing
  };
  using Scope = std::unordered_map<std::string_view, Register>;

  int allocate(int bits);

  Program& program_;
  std::vector<Scope> scopes_;
  std::unordered_map<std::string_view, Family> families_;
  std::map<std::string, u64, std::less<>> addresses_;
  std::map<std::pair<u64, int>, int> constants_;
  std::map<std::string, int, std::less<>> specials_;
  std::map<int, int> scratch_;
};

// Returns the bits of a type such as "f32", "bf16" or "pred"; 0 if it is not a type.
int type_bits(std::string_view type);
// Reads an integer, 0f... or 0d... literal; returns false if it is not a literal.
bool parse_number(std::string_view text, int bits, u64& value);

}  // namespace ptx
