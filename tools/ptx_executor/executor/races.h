// Race detection by barrier intervals on shadow cells.
#pragma once
#include "machine.h"

namespace ptx {

// An access of one lane.  `old_bytes`: the bytes in memory before a write of `new_bytes`; either may be null.
struct Touch {
  Space space;
  int lane;
  Use use;
  u64 address;
  const u8* old_bytes;
  const u8* new_bytes;
};
// Records an access to `bytes` bytes whose shadow begins at `cell`, and reports its conflicts.
void touch(Machine& machine, Cell* cell, u32 bytes, int shift, const Touch& touch);

}  // namespace ptx
