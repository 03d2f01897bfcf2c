// Runs one warp between block barriers.
#pragma once
#include "machine.h"

namespace ptx {

// A trap: the launch stops, its reports stand.
struct Trap {};

// Until every live lane is at a block barrier or has exited.
void run_warp(Machine& machine, Warp& warp);

}  // namespace ptx
