#include "vulkan/runtime/arena.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <utility>

namespace ebmvk {
namespace {

using Interval = std::pair<std::uint64_t, std::uint64_t>;  // begin, end

// The start of the smallest gap between `taken` that holds `bytes`; the end of all if no gap does.
std::uint64_t smallest_gap(std::vector<Interval> taken, std::uint64_t bytes, std::uint64_t alignment) {
  std::sort(taken.begin(), taken.end());
  auto smallest = std::numeric_limits<std::uint64_t>::max();
  std::uint64_t best = 0, end = 0;
  for (const auto& [begin, until] : taken) {
    if (begin >= end + bytes && begin - end < smallest) {
      smallest = begin - end;
      best = end;
    }
    end = std::max(end, (until + alignment - 1) / alignment * alignment);
  }
  return smallest == std::numeric_limits<std::uint64_t>::max() ? end : best;
}

}  // namespace

Arena arrange(const std::vector<Lifetime>& tensors, std::uint64_t alignment) {
  if (alignment == 0) throw std::invalid_argument("the alignment of an arena is zero");
  std::vector<std::size_t> order(tensors.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return tensors[a].bytes > tensors[b].bytes; });
  Arena arena;
  arena.offsets.resize(tensors.size());
  for (std::size_t placed = 0; placed < order.size(); ++placed) {
    const auto& tensor = tensors[order[placed]];
    if (tensor.last < tensor.first) throw std::invalid_argument("a tensor of an arena ends before it begins");
    std::vector<Interval> taken;
    for (std::size_t i = 0; i < placed; ++i) {
      const auto& other = tensors[order[i]];
      if (other.first > tensor.last || tensor.first > other.last) continue;
      taken.emplace_back(arena.offsets[order[i]], arena.offsets[order[i]] + other.bytes);
    }
    const auto offset = smallest_gap(std::move(taken), tensor.bytes, alignment);
    arena.offsets[order[placed]] = offset;
    arena.bytes = std::max(arena.bytes, offset + tensor.bytes);
  }
  return arena;
}

}  // namespace ebmvk
