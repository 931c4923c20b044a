#include "vulkan/ops/tiling.h"

#include "kernels.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>

namespace ebmvk {
namespace {

// Ordered from many queries to few. A point that is read serves all queries of its tile.
// square  Each invocation has 64 sums, and 16 loads of 16 bytes from shared memory for 256
//         multiply-adds. It takes about 128 registers, so that two workgroups of 256 fit the 64K
//         registers of a multiprocessor, and four the 128 KiB of an RDNA one. With fewer registers
//         an invocation would spill.
// slim    A quarter of the rows, because below about 64 queries the time goes into reading the
//         points, not into arithmetic.
// matvec  One point per invocation, for any number of queries: limited by bandwidth only.
// direct  No shared memory. For processors, where shared memory is ordinary memory with emulated
//         barriers, and for devices that are too small for the other tilings: some have only the
//         required 16 KiB and 128 invocations.
constexpr Tiling kTilings[] = {
    {Scoring::square, "square", kernels::ScoreTiled::name, 256, 8, 8, 128, 128, 4 * (132 + 132) * 16, 128, 64},
    {Scoring::slim, "slim", kernels::ScoreTiled::name, 256, 2, 8, 32, 128, 4 * (34 + 130) * 16, 64, 8},
    {Scoring::matvec, "matvec", kernels::ScoreMatvec::name, 64, 8, 1, 8, 64, 64 * 9 * 16 + 64 * 4, 48, 1},
    {Scoring::direct, "direct", kernels::ScoreDirect::name, 0, 4, 4, 4, 0, 0, 64, 1},
};

bool fits(const Capabilities& device, const Tiling& tiling) {
  return device.max_group_size >= tiling.group && device.max_shared_bytes >= tiling.shared_bytes;
}

bool suits(const Capabilities& device, const Tiling& tiling) {
  return fits(device, tiling) && device.registers >= tiling.registers &&
         (device.type != "cpu" || tiling.shared_bytes == 0);
}

// Fills in the parts that depend on the device and the number of queries.
Tiling fill(Tiling tiling, const Capabilities& device, std::uint32_t queries) {
  if (tiling.scoring == Scoring::direct) {  // one subgroup, as wide as the device's
    tiling.group = std::clamp(device.subgroup_size, 8u, 128u);
    tiling.columns = tiling.group * tiling.result_columns;
  }
  if (tiling.scoring == Scoring::matvec) {  // so that few sums belong to no query
    while (tiling.rows / 2 >= std::max(queries, 1u)) tiling.rows /= 2;
    tiling.result_rows = tiling.rows;
  }
  return tiling;
}

}  // namespace

std::vector<std::uint32_t> Tiling::constants() const {
  if (scoring == Scoring::matvec) return {result_rows};
  return {result_rows, result_columns};
}

Tiling choose_tiling(const Capabilities& device, Scoring scoring, std::uint32_t queries) {
  for (const auto& tiling : kTilings) {
    if (scoring == Scoring::automatic) {
      if (queries >= tiling.from_queries && suits(device, tiling)) return fill(tiling, device, queries);
    } else if (scoring == tiling.scoring) {
      if (!fits(device, tiling))
        throw Unsupported(std::string("the tiling ") + tiling.name + " is too large for the device");
      return fill(tiling, device, queries);
    }
  }
  return fill(kTilings[std::size(kTilings) - 1], device, queries);
}

std::vector<std::pair<std::uint32_t, std::string>> describe_tilings(const Capabilities& device) {
  std::vector<std::pair<std::uint32_t, std::string>> out;
  for (const std::uint32_t queries : {1u, 8u, 64u}) {
    const auto tiling = choose_tiling(device, Scoring::automatic, queries);
    const auto words =
        std::string(tiling.name) + " " + std::to_string(tiling.rows) + "x" + std::to_string(tiling.columns);
    if (out.empty() || out.back().second != words) out.emplace_back(queries, words);
  }
  return out;
}

}  // namespace ebmvk
