// What a physical device offers, as its driver reports it, and what this engine decides from that.
#pragma once

#include <vulkan/vulkan.hpp>

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ebmvk {

struct Capabilities {
  std::uint32_t index = 0;
  std::string name;
  std::string type;  // cpu, integrated, discrete, virtual or other
  std::string driver;
  std::uint32_t vendor = 0;  // VkPhysicalDeviceProperties::vendorID
  bool moltenvk = false;     // Vulkan on Apple's Metal
  std::uint32_t api_version = 0;
  std::uint64_t memory_bytes = 0;  // size of the largest device-local heap
  std::uint64_t max_storage_range = 0;
  std::uint32_t max_groups = 0;      // per dispatch, first dimension
  std::uint32_t max_groups_yz = 0;   // in the second and in the third dimension
  std::uint32_t max_group_size = 0;  // invocations
  std::uint32_t max_shared_bytes = 0;
  std::uint32_t max_bindings = 0;       // storage buffers per kernel
  std::uint32_t max_push_bytes = 0;     // push constants
  std::uint64_t storage_alignment = 0;  // of the offset of a storage buffer's range
  std::uint64_t max_allocation = 0;     // bytes
  std::uint32_t subgroup_reported = 0;  // the size that pipelines have by default
  std::uint32_t subgroup_min = 0, subgroup_max = 0;
  std::uint32_t max_subgroups = 0;  // per workgroup
  bool subgroup_arithmetic = false;
  bool subgroup_full = false;        // a pipeline can ask for full subgroups
  bool subgroup_selectable = false;  // a compute pipeline can ask for a size
  // The most loop iterations of an invocation. llvmpipe silently leaves every loop after 65,535
  // iterations of all loops together (Mesa's LP_MAX_TGSI_LOOP_ITERATIONS), so there this number is
  // smaller; elsewhere loops are unlimited.
  std::uint32_t loop_rounds = 0xffffffffu;
  bool float16 = false;                               // arithmetic and storage
  std::vector<std::pair<std::uint64_t, bool>> heaps;  // bytes, device-local
  std::string missing;                                // why the device can't be used; empty if it can

  // The engine's decisions from the above, which `decide` fills in.
  std::uint32_t subgroup_size = 0;  // of kernels that use subgroups
  bool subgroup_control = false;    // such kernels get full subgroups of this size
  bool subgroup_required = false;   // such kernels must ask for this size; if not, the device has no other
  std::uint32_t registers = 0;      // 32-bit registers that an invocation of a kernel may use
  void decide();
};

Capabilities describe(vk::PhysicalDevice device, std::uint32_t index);

// The family of a compute queue, if possible one that does nothing else; -1 if there isn't one.
int compute_family(vk::PhysicalDevice device);

}  // namespace ebmvk
