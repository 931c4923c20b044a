#include "vulkan/ops/sort.h"

#include "vulkan/runtime/errors.h"

#include <algorithm>

namespace ebmvk {
namespace {

constexpr std::uint32_t kCounters = 2048;  // radix.glsl: digit_count
constexpr std::uint32_t kMostGroups = 256;

std::uint32_t divide_up(std::uint64_t a, std::uint64_t b) { return static_cast<std::uint32_t>((a + b - 1) / b); }

}  // namespace

std::uint32_t digit_bits(std::uint32_t group) { return bits_of(kCounters / group) - 1; }

std::uint32_t scan_group(const Capabilities& device) {
  return device.type == "cpu" ? spread_over(device, 0, 2).group : std::min(256u, device.max_group_size);
}

std::uint32_t bits_of(std::uint64_t largest) {
  std::uint32_t bits = 1;
  while (largest >>= 1) ++bits;
  return bits;
}

Spread spread_over(const Capabilities& device, std::uint64_t count, std::uint32_t passes) {
  // On a processor: few invocations with long shares, because the work for each digit and workgroup
  // costs as much as an entry.
  const bool processor = device.type == "cpu";
  const auto group = processor ? power_of_two(std::clamp(device.subgroup_size, 4u, 16u)) : 64u;
  const std::uint64_t each = processor ? 256 : 8;
  const std::uint64_t most = std::max(device.loop_rounds / 2 / passes, 1u);  // half is for the digits
  const auto groups = std::max(std::min(divide_up(count, group * each), kMostGroups), divide_up(count, group * most));
  // scan_counts passes twice through counts of all digits and workgroups.
  if (std::uint64_t{2} * groups * (kCounters / group) / group + 64 > device.loop_rounds)
    throw Unsupported(std::to_string(count) + " candidates to sort: loops end after " +
                      std::to_string(device.loop_rounds) + " iterations on this driver");
  return {group, std::max(groups, 1u)};
}

Grid grid_of(const Capabilities& device, std::uint64_t groups) {
  const auto x = std::min<std::uint64_t>(std::max<std::uint64_t>(groups, 1), device.max_groups);
  return {static_cast<std::uint32_t>(x), divide_up(std::max<std::uint64_t>(groups, 1), x)};
}

void record_scan(Engine& engine, Program& program, const View& params, const View& counts, std::uint32_t total) {
  const auto group = scan_group(engine.device().capabilities());
  program.kernel(engine.kernels().get(kernels::ScanCounts::name, group, {}), {params, counts},
                 kernels::ScanCounts{total}, 1);
}

Sort::Sort(Engine& engine, std::uint64_t most)
    : spread_(spread_over(engine.device().capabilities(), most, 2)),
      order_{Buffer(engine.device(), Buffer::Kind::device, checked_product(most, 4)),
             Buffer(engine.device(), Buffer::Kind::device, checked_product(most, 4))},
      counts_(engine.device(), Buffer::Kind::device, std::uint64_t{4} * spread_.groups * (kCounters / spread_.group)) {}

View Sort::record(Engine& engine, Program& program, const View& params, const std::vector<SortKey>& keys) const {
  std::uint32_t unsorted = 1;
  std::uint32_t from = 0;
  for (const auto& key : keys) {
    const auto passes = divide_up(key.bits, digit_bits(spread_.group));
    const auto bits = divide_up(key.bits, passes);  // of a digit
    const std::uint32_t digits = 1u << bits;
    const auto& count = engine.kernels().get(kernels::SortCount::name, spread_.group, {digits});
    const auto& scatter = engine.kernels().get(kernels::SortScatter::name, spread_.group, {digits});
    for (std::uint32_t pass = 0; pass < passes; ++pass, unsorted = 0, from ^= 1) {
      program.kernel(count, {params, key.values, order_[from], counts_},
                     kernels::SortCount{key.per_key, pass * bits, unsorted}, spread_.groups);
      record_scan(engine, program, params, counts_, digits * spread_.groups);
      program.kernel(scatter, {params, key.values, order_[from], counts_, order_[from ^ 1]},
                     kernels::SortScatter{key.per_key, pass * bits, unsorted}, spread_.groups);
    }
  }
  return order_[from];
}

}  // namespace ebmvk
