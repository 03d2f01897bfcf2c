#include "launch.h"

namespace kradagrad::cuda {
namespace {

// Pointers lie at multiples of eight in the structs of a table, which start at multiples of kAlignment, and
// in those of parameters. No other eight bytes of these lie within `size` of a base: sizes and counts are far
// smaller, and a float of these bits, 5e35, would need a small whole number as the other half of its word.
void bind(std::vector<char>& bytes, uint64_t base, uint64_t size, const void* memory) {
  for (std::size_t at = 0; at + sizeof(uint64_t) <= bytes.size(); at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + at, sizeof word);
    if (word - base > size) continue;  // an end may be pointed to
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
