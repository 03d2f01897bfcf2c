// PTX text to Program.
#pragma once
#include <string>

#include "program.h"

namespace ptx {

// `entry`: part of the name of the one kernel meant; empty if the module has only one.
Program parse(const std::string& text, const std::string& entry);

}  // namespace ptx
