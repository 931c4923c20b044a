// Sums weighted rows by segment, in a fixed order, for the gradients of shared points and for
// statistics.
#pragma once

#include "vulkan/ops/engine.h"

namespace ebmvk {

// An entry to add to the segment `key`. Sorted entries are in the order of addition.
using Keyed = std::uint64_t;
inline Keyed keyed(std::uint32_t key, std::uint32_t entry) { return std::uint64_t{key} << 32 | entry; }

class SegmentSum {
 public:
  // Entry e adds weights_e.x a_row + weights_e.y b_row with row = e / per_row. Rows have `width`
  // floats in whole quads. There are at most `most` entries per call.
  SegmentSum(Engine& engine, const View& weights, const View& a, const View& b, std::uint32_t width,
             std::uint32_t per_row, std::uint64_t most);

  // totals[key] += its entries, one after the other; totals is dense, (keys, width). Dividing the
  // entries into calls differently doesn't change a bit.
  void add(Engine& engine, Engine::Call& call, const std::vector<Keyed>& sorted, float* totals);

 private:
  std::size_t take(const std::vector<Keyed>& sorted, std::size_t begin, std::size_t end);

  std::uint32_t width_, segments_;
  kernels::SegmentSum push_;
  Buffer params_;
  Table starts_, entries_, sums_;
  Program program_;
  std::vector<std::uint32_t> keys_;  // of the segments in progress
};

}  // namespace ebmvk
