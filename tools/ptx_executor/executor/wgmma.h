// Properties of wgmmas that the parser and the scheduler use.
#pragma once
#include "machine.h"

namespace ptx {

// Returns the slots of a wgmma's accumulators and of a's registers, in this order; empty for other
// instructions.
std::vector<int> wgmma_registers(const Instruction& instruction);

// Records that an instruction other than a wgmma accesses registers of wgmmas.
void touch_registers(Warp& warp, const Instruction& instruction);

}  // namespace ptx
