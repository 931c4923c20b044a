// Places tensors in one allocation, so that those that are never needed at the same time share
// memory.
#pragma once

#include <cstdint>
#include <vector>

namespace ebmvk {

// A tensor of a plan: its size, and the first and the last of the plan's nodes that touch it.
struct Lifetime {
  std::uint64_t bytes;
  std::uint32_t first, last;
};

struct Arena {
  std::vector<std::uint64_t> offsets;  // of each tensor, multiples of the alignment
  std::uint64_t bytes = 0;             // of the allocation: the highest end of a tensor
};

// Offsets at which tensors that live at the same time don't overlap. Places the largest first, each
// into the smallest gap that fits (greedy by size, Pisarchyk and Lee 2020, arXiv:2001.03288). Throws
// std::invalid_argument if a tensor ends before it begins, or `alignment` is zero.
Arena arrange(const std::vector<Lifetime>& tensors, std::uint64_t alignment);

}  // namespace ebmvk
