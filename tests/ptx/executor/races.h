// Race detection by barrier intervals on shadow cells.
#pragma once
#include "machine.h"

namespace ptx {

// Records an access to `bytes` bytes whose shadow begins at `cell` and reports what it conflicts with.
// `bytes` are the machine's bytes before a write of `value`; either may be null.
struct Touch {
  Space space;
  int lane;
  Use use;
  u64 address;
  const u8* old_bytes;
  const u8* new_bytes;
};
void touch(Machine& machine, Cell* cell, u32 bytes, int shift, const Touch& touch);

}  // namespace ptx
