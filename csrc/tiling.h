// How the scores of queries and points are cut into workgroups: one table, by device and number of queries.
#pragma once

#include "device.h"

#include <string>
#include <utility>
#include <vector>

namespace ebmvk {

enum class Scoring { automatic, direct, matvec, slim, square };

// A scoring kernel with its tile: rows (queries) and columns (points) that one workgroup covers, and those of one
// invocation.
struct Tiling {
  Scoring scoring;
  const char* name;
  const char* kernel;
  std::uint32_t group, result_rows, result_columns, rows, columns;
  std::uint32_t shared_bytes;
  std::uint32_t from_queries;  // the least that it is chosen for

  // Specialisation constants of its kernel.
  std::vector<std::uint32_t> constants() const;
};

// The tiling for `queries` on the device, or the one asked for. Throws Unsupported where the device cannot run that.
Tiling choose_tiling(const Capabilities& device, Scoring scoring, std::uint32_t queries);

// The choice in words: from how many queries on, which tiling.
std::vector<std::pair<std::uint32_t, std::string>> describe_tilings(const Capabilities& device);

}  // namespace ebmvk
