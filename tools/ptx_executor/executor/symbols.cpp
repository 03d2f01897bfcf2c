#include "symbols.h"

#include <charconv>

namespace ptx {

int Symbols::allocate(int bits) {
  const int alignment = bits == 1 ? 4 : 64;
  const int slot = (program_.register_bytes + alignment - 1) / alignment * alignment;
  program_.register_bytes = slot + (bits == 1 ? 4 : bits / 8 * kWarpSize);
  return slot;
}

void Symbols::declare_register(std::string_view name, int bits) {
  scopes_.back()[name] = {allocate(bits), bits};
}

void Symbols::declare_family(std::string_view prefix, int count, int bits) {
  families_[prefix] = {count, bits, std::vector<int>(count, -1)};
}

Register Symbols::find_register(std::string_view name) {
  for (size_t i = scopes_.size(); i-- > 0;) {
    if (auto it = scopes_[i].find(name); it != scopes_[i].end()) return it->second;
  }
  const size_t digits = name.find_last_not_of("0123456789") + 1;
  auto family = families_.find(name.substr(0, digits));
  int index = -1;
  std::from_chars(name.data() + digits, name.data() + name.size(), index);
  if (family == families_.end() || index < 0 || index >= family->second.count) return {};
  int& slot = family->second.slots[index];
  if (slot < 0) slot = allocate(family->second.bits);
  return {slot, family->second.bits};
}

const u64* Symbols::find_address(std::string_view name) const {
  auto it = addresses_.find(name);
  return it == addresses_.end() ? nullptr : &it->second;
}

const Parameter* Symbols::find_parameter(std::string_view name) const {
  for (const Parameter& p : program_.parameters) {
    if (p.name == name) return &p;
  }
  return nullptr;
}

int Symbols::constant(u64 value, int bits) {
  if (bits < 64) value &= (u64{1} << bits) - 1;
  auto [it, added] = constants_.try_emplace({value, bits}, 0);
  if (added) {
    it->second = allocate(bits);
    program_.constants.push_back({it->second, bits, value});
  }
  return it->second;
}

int Symbols::special(std::string_view name) {
  static const std::string_view kNames[] = {
      "%tid.x",   "%tid.y",   "%tid.z",       "%ntid.x",      "%ntid.y",      "%ntid.z",      "%ctaid.x",
      "%ctaid.y", "%ctaid.z", "%nctaid.x",    "%nctaid.y",    "%nctaid.z",    "%laneid",      "%warpid",
      "%nwarpid", "%clock",   "%lanemask_eq", "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge"};
  if (auto it = specials_.find(name); it != specials_.end()) return it->second;
  for (std::string_view known : kNames) {
    if (known != name) continue;
    const int slot = allocate(32);
    program_.specials.push_back({std::string(name), slot});
    return specials_[std::string(name)] = slot;
  }
  return -1;
}

int Symbols::scratch(int bits) {
  auto [it, added] = scratch_.try_emplace(bits, 0);
  if (added) it->second = allocate(bits);
  return it->second;
}

int type_bits(std::string_view type) {
  if (type == "pred") return 1;
  if (type == "bf16") return 16;
  if (type == "bf16x2" || type == "f16x2" || type == "tf32") return 32;
  if (type.size() < 2 || std::string_view("busf").find(type[0]) == std::string_view::npos) return 0;
  const std::string_view digits = type.substr(1);
  for (int bits : {8, 16, 32, 64}) {
    if (digits == std::to_string(bits)) return type == "f8" ? 0 : bits;
  }
  return 0;
}

bool parse_number(std::string_view text, int bits, u64& value) {
  const bool negative = !text.empty() && text[0] == '-';
  if (negative) text.remove_prefix(1);
  if (text.empty() || text[0] < '0' || text[0] > '9') return false;
  if (text.back() == 'U') text.remove_suffix(1);
  const char second = text.size() > 1 && text[0] == '0' ? text[1] : '\0';
  int base = 10;
  if (second == 'x' || second == 'X') base = 16;
  const bool single = second == 'f' || second == 'F', real = second == 'd' || second == 'D';
  if (single || real) base = 16;
  if (second == 'b' || second == 'B') base = 2;
  if (base != 10) text.remove_prefix(2);
  if (base == 10 && text.size() > 1 && text[0] == '0') base = 8;
  auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value, base);
  if (error != std::errc() || end != text.data() + text.size()) return false;
  // A single-precision literal stands for its value, so a 64-bit operand widens it.
  if (single && bits == 64)
    value = bits_as<u64>(static_cast<double>(bits_as<float>(static_cast<u32>(value))));
  if (negative && (single || real)) return false;
  if (negative) value = ~value + 1;
  return true;
}

}  // namespace ptx
