// Guard bands and poison, for tests: they reveal a kernel that writes outside its buffers or leaves
// part of a result unwritten. Used only with Options::guard.
#pragma once

#include "vulkan/runtime/device.h"

#include <string>

namespace ebmvk {

// Fills a new device buffer of `bytes` (bands included) with Buffer::kPoison, and its bands with
// Buffer::kGuard.
void poison(Device& device, vk::Buffer buffer, std::uint64_t bytes);

// Empty if all guard bands of the device's live buffers are intact; otherwise says which one isn't.
std::string damaged_guards(Device& device);

}  // namespace ebmvk
