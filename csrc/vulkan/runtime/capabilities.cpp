#include "vulkan/runtime/capabilities.h"

#include "vulkan/runtime/vendors.h"

#include <algorithm>

namespace ebmvk {
namespace {

// The number of storage buffers that the largest kernels bind.
constexpr std::uint32_t kNeededBindings = 16;

std::string type_name(vk::PhysicalDeviceType type) {
  switch (type) {
    case vk::PhysicalDeviceType::eCpu: return "cpu";
    case vk::PhysicalDeviceType::eIntegratedGpu: return "integrated";
    case vk::PhysicalDeviceType::eDiscreteGpu: return "discrete";
    case vk::PhysicalDeviceType::eVirtualGpu: return "virtual";
    default: return "other";
  }
}

std::uint64_t largest_local_heap(const vk::PhysicalDeviceMemoryProperties& memory) {
  std::uint64_t largest = 0;
  for (std::uint32_t i = 0; i < memory.memoryHeapCount; ++i)
    if (memory.memoryHeaps[i].flags & vk::MemoryHeapFlagBits::eDeviceLocal)
      largest = std::max<std::uint64_t>(largest, memory.memoryHeaps[i].size);
  return largest;
}

}  // namespace

int compute_family(vk::PhysicalDevice device) {
  const auto families = device.getQueueFamilyProperties();
  int found = -1;
  for (std::size_t i = 0; i < families.size(); ++i) {
    if (!(families[i].queueFlags & vk::QueueFlagBits::eCompute)) continue;
    if (!(families[i].queueFlags & vk::QueueFlagBits::eGraphics)) return static_cast<int>(i);
    if (found < 0) found = static_cast<int>(i);
  }
  return found;
}

void Capabilities::decide() {
  const auto& facts = facts_of(vendor, subgroup_min);
  const bool reported_is_possible = subgroup_min <= subgroup_reported && subgroup_reported <= subgroup_max;
  // If there is one size, pipelines needn't ask for it, and drivers of such hardware (GCN) don't let
  // them. MoltenVK's sizes come from a table by vendor, not from Metal, so they can't be relied on.
  const bool fixed = subgroup_min == subgroup_max && !moltenvk;
  subgroup_control = subgroup_full && subgroup_reported && reported_is_possible && (subgroup_selectable || fixed);
  subgroup_required = subgroup_control && subgroup_selectable;
  subgroup_size = subgroup_required ? std::clamp(facts.subgroup, subgroup_min, subgroup_max) : subgroup_reported;
  registers = facts.registers;
}

Capabilities describe(vk::PhysicalDevice device, std::uint32_t index) {
  Capabilities out;
  out.index = index;
  const auto base = device.getProperties();
  out.name = base.deviceName.data();
  out.type = type_name(base.deviceType);
  out.vendor = base.vendorID;
  out.api_version = base.apiVersion;
  if (out.type == "cpu") out.loop_rounds = 65535 - 64;
  const auto memory = device.getMemoryProperties();
  out.memory_bytes = largest_local_heap(memory);
  for (std::uint32_t i = 0; i < memory.memoryHeapCount; ++i)
    out.heaps.emplace_back(memory.memoryHeaps[i].size,
                           static_cast<bool>(memory.memoryHeaps[i].flags & vk::MemoryHeapFlagBits::eDeviceLocal));
  out.max_storage_range = base.limits.maxStorageBufferRange;
  out.max_groups = base.limits.maxComputeWorkGroupCount[0];
  out.max_groups_yz = std::min(base.limits.maxComputeWorkGroupCount[1], base.limits.maxComputeWorkGroupCount[2]);
  out.max_group_size = std::min(base.limits.maxComputeWorkGroupInvocations, base.limits.maxComputeWorkGroupSize[0]);
  out.max_shared_bytes = base.limits.maxComputeSharedMemorySize;
  out.max_bindings =
      std::min(base.limits.maxPerStageDescriptorStorageBuffers, base.limits.maxDescriptorSetStorageBuffers);
  out.max_push_bytes = base.limits.maxPushConstantsSize;
  out.storage_alignment = base.limits.minStorageBufferOffsetAlignment;
  if (base.apiVersion < VK_API_VERSION_1_2) {
    out.missing = "it offers Vulkan " + std::to_string(VK_API_VERSION_MAJOR(base.apiVersion)) + "." +
                  std::to_string(VK_API_VERSION_MINOR(base.apiVersion)) + ", and 1.2 is needed";
    return out;
  }
  const auto properties =
      device.getProperties2<vk::PhysicalDeviceProperties2, vk::PhysicalDeviceDriverProperties,
                            vk::PhysicalDeviceSubgroupProperties, vk::PhysicalDeviceMaintenance3Properties>();
  const auto& driver = properties.get<vk::PhysicalDeviceDriverProperties>();
  const auto& subgroup = properties.get<vk::PhysicalDeviceSubgroupProperties>();
  out.moltenvk = driver.driverID == vk::DriverId::eMoltenvk;
  out.driver = std::string(driver.driverName.data()) + " " + driver.driverInfo.data();
  out.max_allocation = properties.get<vk::PhysicalDeviceMaintenance3Properties>().maxMemoryAllocationSize;
  out.subgroup_reported = subgroup.subgroupSize;
  out.subgroup_arithmetic = (subgroup.supportedStages & vk::ShaderStageFlagBits::eCompute) &&
                            (subgroup.supportedOperations & vk::SubgroupFeatureFlagBits::eArithmetic) &&
                            (subgroup.supportedOperations & vk::SubgroupFeatureFlagBits::eBallot);  // matmul_lanes
  const auto features = device.getFeatures2<vk::PhysicalDeviceFeatures2, vk::PhysicalDeviceVulkan11Features,
                                            vk::PhysicalDeviceVulkan12Features>();
  out.float16 = features.get<vk::PhysicalDeviceVulkan11Features>().storageBuffer16BitAccess &&
                features.get<vk::PhysicalDeviceVulkan12Features>().shaderFloat16;
  if (base.apiVersion >= VK_API_VERSION_1_3) {
    const auto newer = device.getFeatures2<vk::PhysicalDeviceFeatures2, vk::PhysicalDeviceVulkan13Features>();
    const auto sizes = device.getProperties2<vk::PhysicalDeviceProperties2, vk::PhysicalDeviceVulkan13Properties>();
    const auto& control = newer.get<vk::PhysicalDeviceVulkan13Features>();
    const auto& limits = sizes.get<vk::PhysicalDeviceVulkan13Properties>();
    out.max_subgroups = limits.maxComputeWorkgroupSubgroups;
    out.subgroup_min = limits.minSubgroupSize;
    out.subgroup_max = limits.maxSubgroupSize;
    out.subgroup_full = control.subgroupSizeControl && control.computeFullSubgroups;
    out.subgroup_selectable = static_cast<bool>(limits.requiredSubgroupSizeStages & vk::ShaderStageFlagBits::eCompute);
  }
  out.decide();
  if (out.max_bindings < kNeededBindings)
    out.missing = "a kernel may bind " + std::to_string(out.max_bindings) + " storage buffers, and " +
                  std::to_string(kNeededBindings) + " are needed";
  if (compute_family(device) < 0) out.missing = "it has no queue that computes";
  return out;
}

}  // namespace ebmvk
