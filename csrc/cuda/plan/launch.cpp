#include "launch.h"

namespace kradagrad::cuda {
namespace {

// Replaces addresses from `base` on with addresses in `memory`. Pointers are at multiples of eight bytes in
// the structs of a table, which start at multiples of kAlignment, and in those of parameters. No other word
// of these is within `size` of a base: sizes and counts are far smaller, and a float with these bits, 5e35,
// would need a small integer as the other half of its word.
void bind(std::vector<char>& bytes, uint64_t base, uint64_t size, const void* memory) {
  for (std::size_t at = 0; at + sizeof(uint64_t) <= bytes.size(); at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + at, sizeof word);
    if (word - base > size) continue;  // a pointer may point to the end
    word = word - base + reinterpret_cast<uint64_t>(memory);
    std::memcpy(bytes.data() + at, &word, sizeof word);
  }
}

}  // namespace

void Plan::bind_scratch(void* scratch_memory) {
  const auto size = static_cast<uint64_t>(scratch);
  bind(table, kScratchBase, size, scratch_memory);
  for (Launch& launch : launches) bind(launch.parameters, kScratchBase, size, scratch_memory);
}

void Plan::bind_table(void* uploaded_table) {
  for (Launch& launch : launches) bind(launch.parameters, kTableBase, table.size(), uploaded_table);
}

}  // namespace kradagrad::cuda
