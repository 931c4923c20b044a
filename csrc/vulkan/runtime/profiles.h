// Limits of other devices, for tests: an engine that pretends to be one of them chooses the kernels,
// workgroups and buffers that it would choose there.
#pragma once

#include "vulkan/runtime/capabilities.h"

#include <string>
#include <vector>

namespace ebmvk {

// Shrinks limits to those of the profile; no limit grows. Throws Unsupported for an unknown name.
void pretend(Capabilities& device, const std::string& profile);

std::vector<std::string> profile_names();

}  // namespace ebmvk
