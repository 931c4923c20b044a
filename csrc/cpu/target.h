// Which instruction set the kernels run on.
#pragma once

#include <string>
#include <vector>

namespace ebmvk {

// The names of the instruction sets that are compiled in and that this processor supports, best
// first.
std::vector<std::string> Targets();
// The one in use.
std::string Target();
// Use this one from now on; for tests. Results differ in their last bits. Throws
// std::invalid_argument.
void UseTarget(const std::string& name);

}  // namespace ebmvk
