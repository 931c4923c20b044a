// Groups (row, candidate) pairs by id, so that sums over a group have a fixed order and need no
// atomics.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ebmvk {

struct Groups {
  std::vector<size_t> first;  // (n + 1): group g is order[first[g]] .. order[first[g + 1] - 1]
  std::vector<size_t> order;  // indices into ids, ascending within a group
};

// A counting sort: ids (count), each in [0, n).
inline Groups GroupById(const int64_t* ids, size_t count, size_t n) {
  Groups groups{std::vector<size_t>(n + 1, 0), std::vector<size_t>(count)};
  for (size_t i = 0; i < count; ++i) ++groups.first[static_cast<size_t>(ids[i]) + 1];
  for (size_t g = 0; g < n; ++g) groups.first[g + 1] += groups.first[g];
  std::vector<size_t> next(groups.first.begin(), groups.first.end() - 1);
  for (size_t i = 0; i < count; ++i) groups.order[next[static_cast<size_t>(ids[i])]++] = i;
  return groups;
}

// Groups per task; enough to be worth waking a thread.
constexpr size_t kGroupsPerTask = 64;

}  // namespace ebmvk
