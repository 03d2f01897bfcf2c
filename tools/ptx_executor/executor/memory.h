// Device memory (buffers of the caller at invented addresses) and the shared memory of one block.
#pragma once
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "program.h"

namespace ptx {

struct Buffer {
  std::string name;
  u64 address = 0;
  u8* data = nullptr;
  u64 size = 0;
  bool writable = true;
  std::vector<u8> written;  // one flag a byte, only for buffers placed as uninitialised

  bool holds(u64 at, u64 bytes) const {
    return at >= address && at - address <= size && bytes <= size - (at - address);
  }
};

// The buffers outlive launches: a launch may read what an earlier one wrote into an uninitialised buffer.
class DeviceMemory {
 public:
  explicit DeviceMemory(u64 base = 0) : base_(base) {}
  u64 place(u8* data, u64 size, std::string name, bool writable, bool uninitialised);
  std::vector<Buffer>& buffers() { return buffers_; }

 private:
  u64 base_;
  std::vector<Buffer> buffers_;
};

// The accesses of one kind to a cell since the last ordering point, merged into one.
struct Access {
  u32 epoch = 0;  // block-barrier interval, counted over the whole launch; 0: never
  u32 step = 0;   // warp-barrier interval of the warp
  u8 warp = 0, lane = 0;
};

// The shadow of 2^shift bytes of memory.
struct Cell {
  Access write, read;
  bool write_atomic;   // every write since the last ordering point was atomic
  bool pending;        // destination of a cp.async whose data have not arrived
  u8 operand_of;       // number of wgmmas in flight that read the cell
  bool foreign_write;  // an earlier block wrote the cell
  bool foreign_read;   // an earlier block read the cell
};
static_assert(std::is_trivially_copyable_v<Cell>);

// The operating system zeroes pages on demand, so untouched parts of a large buffer cost nothing.
class Shadow {
 public:
  void allocate(u64 bytes, int shift);
  Cell* at(u64 offset) { return cells_.get() + (offset >> shift_); }
  u64 count() const { return count_; }
  bool empty() const { return count_ == 0; }

 private:
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  std::unique_ptr<Cell[], Free> cells_;
  u64 count_ = 0;
  int shift_ = 0;
};

// State of one buffer in one launch.
struct BufferState {
  Buffer* buffer = nullptr;
  Shadow shadow;
  std::vector<u64> sectors_read, sectors_written;  // one bit a 32-byte sector
};

struct SharedMemory {
  std::vector<u8> bytes;
  std::vector<SharedRange> ranges;
  Shadow shadow;
  SharedRange last;  // the latest range that an access was found in

  bool holds(u32 at, u32 size) { return (at >= last.begin && u64{at} + size <= last.end) || find(at, size); }

 private:
  bool find(u32 at, u32 size);
};

}  // namespace ptx
