// Parses PTX text to a Program.
#pragma once
#include <string>

#include "program.h"

namespace ptx {

// `entry`: part of the kernel's name that no other kernel has; empty if the module has one kernel.
Program parse(const std::string& text, const std::string& entry);

}  // namespace ptx
