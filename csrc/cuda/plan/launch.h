// What an op does on a device, as data: a table to upload, scratch memory to allocate, and launches in order.
// Nothing here knows torch or CUDA: the library and the tests run the same plans.
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

struct Plan {
  std::vector<char> table;
  int64_t scratch = 0;  // bytes
  std::vector<Launch> launches;
};

// Where a plan's table and scratch memory lie on the device. A plan is made twice: at null, for its sizes,
// and then at the addresses that were allocated.
struct Place {
  char* table = nullptr;
  char* scratch = nullptr;
};

constexpr int64_t kAlignment = 256;
constexpr int64_t align(int64_t size) { return (size + kAlignment - 1) / kAlignment * kAlignment; }

// Lays out a plan at a place.
class Planner {
 public:
  explicit Planner(Place place) : place_(place) {}

  // The device address of a copy of `items`.
  template <class T>
  const T* add(const std::vector<T>& items) {
    static_assert(std::is_trivially_copyable_v<T>);
    const int64_t start = align(static_cast<int64_t>(plan_.table.size()));
    plan_.table.resize(start + items.size() * sizeof(T));
    if (!items.empty()) std::memcpy(plan_.table.data() + start, items.data(), items.size() * sizeof(T));
    return reinterpret_cast<const T*>(place_.table + start);
  }

  // The device address of `count` floats of scratch memory.
  float* floats(int64_t count) {
    float* const address = reinterpret_cast<float*>(place_.scratch + used_);
    used_ = align(used_ + count * static_cast<int64_t>(sizeof(float)));
    if (used_ > plan_.scratch) plan_.scratch = used_;
    return address;
  }

  // Scratch memory from a mark on may be used again.
  int64_t mark() const { return used_; }
  void release(int64_t mark) { used_ = mark; }

  // A launch of no CTAs is left out.
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
  Place place_;
  Plan plan_;
  int64_t used_ = 0;
};

}  // namespace kradagrad::cuda
