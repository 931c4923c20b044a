#include "vulkan/runtime/profiles.h"

#include "vulkan/runtime/errors.h"
#include "vulkan/runtime/vendors.h"

#include <algorithm>

namespace ebmvk {
namespace {

constexpr std::uint32_t kAny = 0xffffffffu;  // no limit, or more than any device of today has

enum class Subgroups {
  none,        // no arithmetic between invocations
  default_,    // arithmetic, at a size that nobody can rely on
  fixed,       // one size, which pipelines can't ask for
  selectable,  // pipelines may ask for a size
};

struct Profile {
  const char* name;
  const char* type;
  std::uint32_t vendor;  // 0: the device's own
  bool moltenvk;
  Subgroups subgroups;
  std::uint32_t group_size, shared_bytes, storage_range, groups;
  bool float16;
};

// gpu       This device, treated as a graphics card.
// smallest  The least that Vulkan allows ("Required Limits").
// rdna2     Mesa's RADV, GFX10 and later: physical_device_properties in radv_physical_device.c.
// vega      Mesa's RADV, GFX9 and earlier, where requiredSubgroupSizeStages is 0.
// intel     Mesa's ANV on Xe-LP.
// apple     MoltenVK on an M1: a pipeline can't ask for a size (requiredSubgroupSizeStages is 0 in
//           MVKDevice.mm), and the sizes are a table by vendor.
// mali      Mesa's PanVK and Arm's driver on Bifrost: 32 KiB of shared memory, 384 invocations.
// midgard   An old Mali without arithmetic between invocations and without float16.
constexpr Profile kProfiles[] = {
    {"gpu", "discrete", 0, false, Subgroups::selectable, kAny, kAny, kAny, kAny, true},
    {"smallest", "discrete", 0, false, Subgroups::default_, 128, 16384, 1u << 27, 65535, false},
    {"rdna2", "discrete", kAmd, false, Subgroups::selectable, 1024, 65536, kAny, kAny, true},
    {"vega", "discrete", kAmd, false, Subgroups::fixed, 1024, 65536, kAny, kAny, true},
    {"intel", "integrated", kIntel, false, Subgroups::selectable, 1024, 65536, 1u << 30, 65535, true},
    {"apple", "integrated", kApple, true, Subgroups::default_, 1024, 32768, 1u << 28, kAny, true},
    {"mali", "integrated", kArm, false, Subgroups::fixed, 384, 32768, 1u << 27, 65535, true},
    {"midgard", "integrated", kArm, false, Subgroups::none, 256, 16384, 1u << 27, 65535, false},
};

template <typename T, typename U>
void shrink(T& limit, U most) {
  limit = std::min<T>(limit, most);
}

}  // namespace

void pretend(Capabilities& device, const std::string& profile) {
  const auto* found = std::find_if(std::begin(kProfiles), std::end(kProfiles),
                                   [&](const Profile& candidate) { return profile == candidate.name; });
  if (found == std::end(kProfiles)) {
    std::string names;
    for (const auto& name : profile_names()) names += (names.empty() ? "" : ", ") + name;
    throw Unsupported("unknown profile to pretend: " + profile + "; known are " + names);
  }
  device.type = found->type;
  if (found->vendor) device.vendor = found->vendor;
  device.moltenvk = device.moltenvk || found->moltenvk;
  device.subgroup_arithmetic = device.subgroup_arithmetic && found->subgroups > Subgroups::none;
  device.subgroup_full = device.subgroup_full && found->subgroups > Subgroups::default_;
  device.subgroup_selectable = device.subgroup_selectable && found->subgroups > Subgroups::fixed;
  shrink(device.max_group_size, found->group_size);
  shrink(device.max_shared_bytes, found->shared_bytes);
  if (found->storage_range != kAny) shrink(device.max_storage_range, found->storage_range);
  shrink(device.max_groups, found->groups);
  shrink(device.max_groups_yz, found->groups);
  if (profile == "smallest") {
    shrink(device.max_push_bytes, 128u);
    device.storage_alignment = 256;
  }
  device.float16 = device.float16 && found->float16;
  device.decide();
}

std::vector<std::string> profile_names() {
  std::vector<std::string> names;
  for (const auto& profile : kProfiles) names.emplace_back(profile.name);
  return names;
}

}  // namespace ebmvk
