// Executes a Program over a grid of blocks.
#pragma once
#include <memory>
#include <vector>

#include "machine.h"

namespace ptx {

struct LaunchResult {
  Counters counters;
  std::vector<Report> reports;
  u64 footprint_read = 0, footprint_written = 0;
};

// `variables`: the module's arrays, which keep their values from launch to launch.
LaunchResult launch(const Program& program, DeviceMemory& memory, DeviceMemory& variables,
                    const Options& options);

}  // namespace ptx
