// How the scores of queries and points are divided into workgroups: one table, by device and number
// of queries.
#pragma once

#include "vulkan/runtime/device.h"

#include <string>
#include <utility>
#include <vector>

namespace ebmvk {

enum class Scoring { automatic, direct, matvec, slim, square };

// A scoring kernel with its tile: the rows (queries) and columns (points) of a workgroup, and those
// of an invocation.
struct Tiling {
  Scoring scoring;
  const char* name;
  const char* kernel;
  std::uint32_t group, result_rows, result_columns, rows, columns;
  std::uint32_t shared_bytes;
  std::uint32_t registers;     // of an invocation, about
  std::uint32_t from_queries;  // the lowest number of queries that it is chosen for

  // The specialisation constants of its kernel.
  std::vector<std::uint32_t> constants() const;
};

// The tiling for `queries` on the device, or the requested one. Throws Unsupported if the device
// can't run it.
Tiling choose_tiling(const Capabilities& device, Scoring scoring, std::uint32_t queries);

// The choice in words: which tiling, from how many queries on.
std::vector<std::pair<std::uint32_t, std::string>> describe_tilings(const Capabilities& device);

}  // namespace ebmvk
