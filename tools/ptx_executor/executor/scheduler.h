// Runs one warp between block barriers.
#pragma once
#include "machine.h"

namespace ptx {

// Thrown by a trap: the launch stops and keeps its reports.
struct Trap {};

// Runs the warp until every live lane is at a block barrier or has exited.
void run_warp(Machine& machine, Warp& warp);

}  // namespace ptx
