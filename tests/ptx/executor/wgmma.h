// What the parser and the scheduler need to know of wgmmas.
#pragma once
#include "machine.h"

namespace ptx {

// Slots of a wgmma's accumulators and of the registers that hold a, in this order; empty: another
// instruction.
std::vector<int> wgmma_registers(const Instruction& instruction);

// An instruction other than a wgmma touches registers of wgmmas.
void touch_registers(Warp& warp, const Instruction& instruction);

}  // namespace ptx
