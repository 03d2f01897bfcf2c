#include "launch.h"

namespace kradagrad::cuda {
namespace {

constexpr uint64_t kBaseBits = 0xFFFF'0000'0000'0000;

// Pointers lie at multiples of eight in the structs of a table, which start at multiples of kAlignment, and
// in those of parameters.
void bind(std::vector<char>& bytes, uint64_t base, const void* memory) {
  for (std::size_t at = 0; at + sizeof(uint64_t) <= bytes.size(); at += sizeof(uint64_t)) {
    uint64_t word;
    std::memcpy(&word, bytes.data() + at, sizeof word);
    if ((word & kBaseBits) != base) continue;
    word = word - base + reinterpret_cast<uint64_t>(memory);
    std::memcpy(bytes.data() + at, &word, sizeof word);
  }
}

}  // namespace

void Plan::bind_scratch(void* scratch_memory) {
  bind(table, kScratchBase, scratch_memory);
  for (Launch& launch : launches) bind(launch.parameters, kScratchBase, scratch_memory);
}

void Plan::bind_table(void* uploaded_table) {
  for (Launch& launch : launches) bind(launch.parameters, kTableBase, uploaded_table);
}

}  // namespace kradagrad::cuda
