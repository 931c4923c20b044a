// Sums of weighted rows by segment, in a fixed order: what gradients of shared points and statistics have in common.
#pragma once

#include "engine_vulkan.h"

namespace ebmvk {

// An entry to add to the segment `key`; sorted, they are in the order of the additions.
using Keyed = std::uint64_t;
inline Keyed keyed(std::uint32_t key, std::uint32_t entry) { return std::uint64_t{key} << 32 | entry; }

class SegmentSum {
 public:
  // Entry e adds weights_e.x a_row + weights_e.y b_row, row = e / per_row; rows have `width` floats in whole quads. At
  // most `most` entries are given at once.
  SegmentSum(Engine& engine, const View& weights, const View& a, const View& b, std::uint32_t width,
             std::uint32_t per_row, std::uint64_t most);

  // totals[key] += the sum of its entries, one after the other; totals is dense, (keys, width). The same bits for every
  // division of the entries into calls.
  void add(Engine& engine, Engine::Call& call, const std::vector<Keyed>& sorted, float* totals);

 private:
  std::size_t take(const std::vector<Keyed>& sorted, std::size_t begin, std::size_t end);

  std::uint32_t width_, segments_;
  kernels::SegmentSum push_;
  Buffer params_;
  Table starts_, entries_, sums_;
  Program program_;
  std::vector<std::uint32_t> keys_;  // of the segments under way
};

}  // namespace ebmvk
