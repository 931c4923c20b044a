// What a SPIR-V module asks of a device, read from its words before a driver sees it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ebmvk {

struct ModuleNeeds {
  std::uint64_t invocations = 1;            // of a workgroup
  std::uint64_t shared_bytes = 0;           // at least; a driver may add padding
  std::uint32_t bindings = 0;               // one more than the highest number
  bool other_sets = false;                  // binds something outside set 0
  std::vector<std::uint32_t> capabilities;  // by their numbers in the SPIR-V specification
};

// `code`: a module whose specialisation constants are fixed (specialise.h). Throws
// std::invalid_argument if it is cut off.
ModuleNeeds needs_of(const std::vector<std::uint32_t>& code);

}  // namespace ebmvk
