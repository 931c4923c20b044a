// A stable radix sort on the device. It uses no atomics, so the order is always the same.
#pragma once

#include "vulkan/ops/engine.h"

#include <cstdint>
#include <vector>

namespace ebmvk {

// How an array is divided between the invocations of a dispatch.
struct Spread {
  std::uint32_t group, groups;
};

// The spread of `count` elements that invocations pass through `passes` times. Throws Unsupported if
// the device's loops are too short.
Spread spread_over(const Capabilities& device, std::uint64_t count, std::uint32_t passes);

// At least `groups` workgroups, as x times y, because there may be more than one dimension allows.
struct Grid {
  std::uint32_t x, y;
};
Grid grid_of(const Capabilities& device, std::uint64_t groups);

// A key of entries: entry e has element e / per_entry of `values`, which are below 2^bits.
struct SortKey {
  View values;
  std::uint32_t per_key, bits;
};

class Sort {
 public:
  // Sorts up to `most` entries.
  Sort(Engine& engine, std::uint64_t most);

  // Records the sort of the entries 0 up to params[0] - 1 by `keys`, the least significant one first.
  // Returns the sorted entries; they stay valid until the next sort.
  View record(Engine& engine, Program& program, const View& params, const std::vector<SortKey>& keys) const;

 private:
  Spread spread_;
  Buffer order_[2], counts_;
};

// The most bits of a digit in workgroups of this size: counters of all digits and invocations share
// 8 KiB.
std::uint32_t digit_bits(std::uint32_t group);

// The workgroup size of `record_scan`, which uses one workgroup.
std::uint32_t scan_group(const Capabilities& device);

// Records the replacement of each of `total` counts by the sum of those before it.
void record_scan(Engine& engine, Program& program, const View& params, const View& counts, std::uint32_t total);

// The number of bits of numbers up to `largest`; at least 1.
std::uint32_t bits_of(std::uint64_t largest);

}  // namespace ebmvk
