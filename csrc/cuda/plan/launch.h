// An op's work on a device, as data: a table to upload, scratch memory to allocate, and launches in order.
// Plans do not depend on torch or CUDA: the library and the tests run the same plans.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <type_traits>
#include <vector>

namespace kradagrad::cuda {

struct Launch {
  std::string kernel;
  int64_t grid;
  int32_t block;
  int32_t shared;                // bytes of dynamic shared memory
  std::vector<char> parameters;  // the kernel's one parameter, a struct
};

// A plan is made before its memory exists. Its pointers to table and scratch memory are symbolic addresses
// from these bases on. No device has such addresses, because they are not canonical.
constexpr uint64_t kTableBase = 0x7ACE'0000'0000'0000;
constexpr uint64_t kScratchBase = 0x7ACF'0000'0000'0000;

struct Plan {
  std::vector<char> table;
  int64_t scratch = 0;  // bytes
  std::vector<Launch> launches;

  // Replace symbolic addresses with real ones. The table is uploaded after bind_scratch; only launches, not
  // the table, contain addresses in the table.
  void bind_scratch(void* scratch_memory);
  void bind_table(void* uploaded_table);
};

constexpr int64_t kAlignment = 256;
constexpr int64_t align(int64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

// Builds a plan.
class Planner {
 public:
  // Copies `items` to the table and returns the address of the copy.
  template <class T>
  const T* add(const std::vector<T>& items) {
    static_assert(std::is_trivially_copyable_v<T>);
    const int64_t start = align(static_cast<int64_t>(plan_.table.size()));
    plan_.table.resize(start + items.size() * sizeof(T));
    if (!items.empty()) std::memcpy(plan_.table.data() + start, items.data(), items.size() * sizeof(T));
    return reinterpret_cast<const T*>(kTableBase + start);
  }

  // Reserves scratch memory for `count` floats and returns its address.
  float* floats(int64_t count) {
    float* const address = reinterpret_cast<float*>(kScratchBase + used_);
    used_ = align(used_ + count * static_cast<int64_t>(sizeof(float)));
    if (used_ > plan_.scratch) plan_.scratch = used_;
    return address;
  }

  // release(mark()) makes scratch memory reserved in between available for reuse.
  int64_t mark() const { return used_; }
  void release(int64_t mark) { used_ = mark; }

  // Adds a launch; one without CTAs is left out.
  template <class T>
  void launch(const std::string& kernel, int64_t grid, int32_t block, int32_t shared, const T& parameters) {
    static_assert(std::is_trivially_copyable_v<T>);
    if (grid == 0) return;
    Launch launch{kernel, grid, block, shared, std::vector<char>(sizeof(T))};
    std::memcpy(launch.parameters.data(), &parameters, sizeof(T));
    plan_.launches.push_back(std::move(launch));
  }

  Plan take() { return std::move(plan_); }

 private:
  Plan plan_;
  int64_t used_ = 0;
};

}  // namespace kradagrad::cuda
