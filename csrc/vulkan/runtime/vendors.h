// Facts about the hardware that Vulkan doesn't report, by vendor.
#pragma once

#include <cstdint>

namespace ebmvk {

constexpr std::uint32_t kAmd = 0x1002, kNvidia = 0x10de, kIntel = 0x8086, kApple = 0x106b, kArm = 0x13b5,
                        kMesa = 0x10005;

struct Vendor {
  std::uint32_t id;
  std::uint32_t from_min_subgroup;  // the row is for devices whose smallest subgroup has at least this size
  std::uint32_t subgroup;           // the size to ask for
  std::uint32_t registers;          // 32-bit registers that an invocation may use at this size without spilling
};

// The facts for a vendor and the device's smallest subgroup; careful ones for an unknown vendor.
const Vendor& facts_of(std::uint32_t vendor, std::uint32_t min_subgroup);

}  // namespace ebmvk
