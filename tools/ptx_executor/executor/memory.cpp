#include "memory.h"

#include <new>

namespace ptx {

u64 DeviceMemory::place(u8* data, u64 size, std::string name, bool writable, bool uninitialised) {
  if (size >= u64{1} << kBufferShift) throw std::invalid_argument("buffer too large");
  Buffer buffer{std::move(name), base_ + ((buffers_.size() + 1) << kBufferShift), data, size, writable, {}};
  if (uninitialised) buffer.written.assign(size, 0);
  buffers_.push_back(std::move(buffer));
  return buffers_.back().address;
}

void Shadow::allocate(u64 bytes, int shift) {
  shift_ = shift;
  count_ = (bytes >> shift) + 2;  // an access at the end may begin in the middle of a cell
  auto* memory = static_cast<Cell*>(std::calloc(count_, sizeof(Cell)));
  if (!memory) throw std::bad_alloc();
  cells_.reset(memory);
}

bool SharedMemory::find(u32 at, u32 size) {
  for (const SharedRange& range : ranges) {
    if (at >= range.begin && u64{at} + size <= range.end) {
      last = range;
      return true;
    }
  }
  return false;
}

}  // namespace ptx
