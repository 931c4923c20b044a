// How work is divided: the workgroup sizes that depend on the device, and the rows of a program.
// Fixed workgroup sizes are in kernels.toml; Engine::row_group has the one for rows of coordinates.
#pragma once

#include "vulkan/ops/engine.h"

#include <algorithm>

namespace ebmvk {

// One workgroup per row of tokens, which are many more than coordinates.
inline std::uint32_t token_group(const Engine& engine) { return engine.row_group(256); }

// One workgroup per row of scores. On a processor it is small, because barriers are emulated.
inline std::uint32_t select_group(const Capabilities& device) {
  return device.type == "cpu" ? 8u : std::min(256u, device.max_group_size);
}

// The number of rows of coordinates, at most `rows`, that one program of an operation on rows takes.
std::uint32_t rows_at_once(const Device& device, std::uint32_t rows, std::uint32_t d);

}  // namespace ebmvk
