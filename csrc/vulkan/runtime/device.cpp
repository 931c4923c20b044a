#include "vulkan/runtime/device.h"

#include "platform.h"
#include "vulkan/runtime/dispatch.h"
#include "vulkan/runtime/errors.h"
#include "vulkan/runtime/machine_code.h"
#include "vulkan/runtime/pipeline_file.h"
#include "vulkan/runtime/profiles.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <utility>

VULKAN_HPP_DEFAULT_DISPATCH_LOADER_DYNAMIC_STORAGE

// DynamicLoader is in vk up to Vulkan-Hpp 1.3.300 and in vk::detail since then, so look it up in
// both.
namespace vk::detail {}
namespace found {
using namespace vk;
using namespace vk::detail;
using Loader = DynamicLoader;
}  // namespace found

namespace ebmvk {
namespace {

constexpr const char* kValidationLayer = "VK_LAYER_KHRONOS_validation";

// The loader is opened at run time, so that this module can be imported without it. It stays open
// even while the process ends: a driver's threads may outlive us, and their code must stay loaded.
void load_vulkan() {
  static std::once_flag once;
  std::call_once(once, [] {
    try {
      static auto& loader = *new found::Loader;
      VULKAN_HPP_DEFAULT_DISPATCHER.init(loader.getProcAddress<PFN_vkGetInstanceProcAddr>("vkGetInstanceProcAddr"));
    } catch (const std::runtime_error&) {
      throw Unavailable("the Vulkan loader (libvulkan.so.1) is not installed");
    }
  });
}

// Functions obtained through one instance work for every instance, because the loader chooses by the
// handles.
void load_functions(vk::Instance instance) {
  static std::once_flag once;
  std::call_once(once, [&] {
    VULKAN_HPP_DEFAULT_DISPATCHER.init(instance);
    wrap_functions();
  });
}

vk::Instance make_instance(bool validate, bool instrument = false) {
  load_vulkan();
  try {
    const vk::ApplicationInfo application("ebmvk", 1, "ebmvk", 1, VK_API_VERSION_1_3);
    std::vector<const char*> layers, extensions;
    using Check = vk::ValidationFeatureEnableEXT;
    std::vector<Check> enabled{Check::eSynchronizationValidation};
    if (instrument) enabled.push_back(Check::eGpuAssisted);
    const vk::ValidationFeaturesEXT checks(enabled);
    vk::InstanceCreateInfo info({}, &application);
    if (validate) {
      const auto known = vk::enumerateInstanceLayerProperties();
      if (std::none_of(known.begin(), known.end(),
                       [](const auto& layer) { return std::string(layer.layerName.data()) == kValidationLayer; }))
        throw Unavailable("validation was requested, but the layer VK_LAYER_KHRONOS_validation is not installed");
      layers.push_back(kValidationLayer);
      extensions.push_back(VK_EXT_DEBUG_UTILS_EXTENSION_NAME);
      info.setPNext(&checks);
    }
    const auto offered = vk::enumerateInstanceExtensionProperties();
    for (const auto& extension : offered)  // MoltenVK is listed only if portability is requested
      if (std::string(extension.extensionName.data()) == VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME) {
        extensions.push_back(VK_KHR_PORTABILITY_ENUMERATION_EXTENSION_NAME);
        info.flags |= vk::InstanceCreateFlagBits::eEnumeratePortabilityKHR;
      }
    info.setPEnabledLayerNames(layers);
    info.setPEnabledExtensionNames(extensions);
    const auto instance = vk::createInstance(info);
    load_functions(instance);
    return instance;
  } catch (const vk::SystemError& error) {
    throw Unavailable(std::string("no Vulkan instance could be made: ") + error.what());
  }
}

std::string megabytes(std::uint64_t bytes) { return std::to_string((bytes + (1u << 20) - 1) >> 20) + " MiB"; }

}  // namespace

static VkBool32 VKAPI_CALL collect_message(VkDebugUtilsMessageSeverityFlagBitsEXT, VkDebugUtilsMessageTypeFlagsEXT,
                                           const VkDebugUtilsMessengerCallbackDataEXT* data, void* user) {
  auto& messages = *static_cast<Messages*>(user);
  const std::lock_guard<std::mutex> lock(messages.mutex);
  messages.texts.emplace_back(data->pMessage);
  return VK_FALSE;
}

std::vector<Capabilities> Device::list() {
  const auto instance = make_instance(false);
  std::vector<Capabilities> out;
  try {
    for (const auto& device : instance.enumeratePhysicalDevices())
      out.push_back(describe(device, static_cast<std::uint32_t>(out.size())));
  } catch (const vk::SystemError&) {  // the loader has no driver
  }
  instance.destroy();
  return out;
}

std::uint32_t Device::loader_version() {
  load_vulkan();
  return vk::enumerateInstanceVersion();
}

Device::Device(std::uint32_t index, const Options& options)
    : options_(options), messages_(std::make_shared<Messages>()), process_(process_id()) {
  capabilities_.index = index;
  try {
    create_instance();
    create_device();
    load_pipeline_cache();
    if (!options_.compile_only) fence_ = device_->createFence({});
  } catch (const vk::SystemError& error) {
    destroy();
    throw Unavailable("Vulkan device " + std::to_string(index) + " could not be opened: " + error.what());
  } catch (...) {
    destroy();
    throw;
  }
}

Device::~Device() { destroy(); }

void Device::destroy() noexcept {
  if (abandoned()) {
    new std::shared_ptr<Messages>(messages_);  // work that still runs may still report messages
    return;
  }
  try {
    if (device_ && *device_) {
      if (lost_.empty()) {
        save_pipeline_cache();
        if (!options_.compile_only) wait_until_idle();
      }
      device_->destroy(fence_);
      device_->destroy(cache_);
      device_->destroy();
    }
    if (messenger_) {
      const auto destroyer = reinterpret_cast<PFN_vkDestroyDebugUtilsMessengerEXT>(
          instance_.getProcAddr("vkDestroyDebugUtilsMessengerEXT"));
      if (destroyer) destroyer(instance_, messenger_, nullptr);
    }
    if (instance_) instance_.destroy();
  } catch (...) {  // the device was lost while it was being closed, so nothing is left to free
  }
}

void Device::create_instance() {
  instance_ = make_instance(options_.validate, options_.instrument);
  if (!options_.validate) return;
  const auto creator =
      reinterpret_cast<PFN_vkCreateDebugUtilsMessengerEXT>(instance_.getProcAddr("vkCreateDebugUtilsMessengerEXT"));
  VkDebugUtilsMessengerCreateInfoEXT info{};  // the type of the callback in the C++ struct depends on the version
  info.sType = VK_STRUCTURE_TYPE_DEBUG_UTILS_MESSENGER_CREATE_INFO_EXT;
  info.messageSeverity =
      VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT;
  info.messageType = VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT | VK_DEBUG_UTILS_MESSAGE_TYPE_PERFORMANCE_BIT_EXT;
  info.pfnUserCallback = collect_message;
  info.pUserData = messages_.get();
  VkDebugUtilsMessengerEXT messenger = VK_NULL_HANDLE;
  if (creator && creator(instance_, &info, nullptr, &messenger) == VK_SUCCESS) messenger_ = messenger;
}

void Device::create_device() {
  const auto devices = instance_.enumeratePhysicalDevices();
  const auto index = capabilities_.index;
  if (index >= devices.size())
    throw Unavailable("there is no Vulkan device " + std::to_string(index) + ": " + std::to_string(devices.size()) +
                      " found");
  physical_ = std::make_shared<vk::PhysicalDevice>(devices[index]);
  capabilities_ = describe(*physical_, index);
  if (!capabilities_.missing.empty())
    throw Unavailable("Vulkan device " + std::to_string(index) + " (" + capabilities_.name +
                      ") can't be used: " + capabilities_.missing);
  if (!options_.pretend.empty()) pretend(capabilities_, options_.pretend);
  if (options_.allocation_bytes)
    capabilities_.max_allocation = std::min(capabilities_.max_allocation, options_.allocation_bytes);
  memory_ = physical_->getMemoryProperties();
  queue_family_ = static_cast<std::uint32_t>(compute_family(*physical_));
  clock_bits_ = physical_->getQueueFamilyProperties()[queue_family_].timestampValidBits;
  clock_seconds_ = 1e-9 * physical_->getProperties().limits.timestampPeriod;

  const float priority = 1.0f;
  const vk::DeviceQueueCreateInfo queue({}, queue_family_, 1, &priority);
  vk::PhysicalDeviceVulkan13Features features13;
  features13.subgroupSizeControl = features13.computeFullSubgroups = capabilities_.subgroup_control;
  vk::PhysicalDeviceVulkan12Features features12;
  features12.shaderFloat16 = capabilities_.float16;
  vk::PhysicalDeviceVulkan11Features features11;
  features11.storageBuffer16BitAccess = capabilities_.float16;
  features11.pNext = &features12;
  if (capabilities_.api_version >= VK_API_VERSION_1_3) features12.pNext = &features13;
  std::vector<const char*> extensions;
  for (const auto& extension : physical_->enumerateDeviceExtensionProperties())
    if (std::string(extension.extensionName.data()) == "VK_KHR_portability_subset")
      extensions.push_back("VK_KHR_portability_subset");
  const vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR reports(VK_TRUE, &features11);
  if (options_.compile_only) require_machine_code(*physical_, extensions);
  vk::DeviceCreateInfo info({}, queue, {}, extensions);
  info.setPNext(options_.compile_only ? static_cast<const void*>(&reports) : &features11);
  device_ = std::make_shared<vk::Device>(physical_->createDevice(info));
  queue_ = std::make_shared<vk::Queue>(device_->getQueue(queue_family_, 0));
}

std::uint64_t Device::storage_range() const {
  const auto limit = capabilities_.max_storage_range;
  return options_.shard_bytes ? std::min(options_.shard_bytes, limit) : limit;
}

std::vector<std::string> Device::take_messages() {
  const std::lock_guard<std::mutex> lock(messages_->mutex);
  return std::exchange(messages_->texts, {});
}

vk::DeviceMemory Device::allocate(const vk::MemoryRequirements& requirements, vk::MemoryPropertyFlags needed,
                                  vk::MemoryPropertyFlags wanted) {
  std::uint32_t type = memory_.memoryTypeCount;
  for (const auto flags : {wanted | needed, needed}) {
    for (std::uint32_t i = 0; i < memory_.memoryTypeCount && type == memory_.memoryTypeCount; ++i)
      if ((requirements.memoryTypeBits >> i & 1u) && (memory_.memoryTypes[i].propertyFlags & flags) == flags) type = i;
  }
  const auto explain = [&](const char* reason) {
    return OutOfMemory(capabilities_.name + ": " + reason + " while allocating " + megabytes(requirements.size) + "; " +
                       megabytes(allocated_) + " are in use here, and the heap has " +
                       megabytes(capabilities_.memory_bytes));
  };
  if (type == memory_.memoryTypeCount) throw explain("no memory type fits");
  if (options_.memory_limit && allocated_ + requirements.size > options_.memory_limit)
    throw explain("the memory limit is reached");
  if (requirements.size > capabilities_.max_allocation)
    throw explain(("the device gives at most " + megabytes(capabilities_.max_allocation) + " at once").c_str());
  try {
    const auto memory = device_->allocateMemory({requirements.size, type});
    allocated_ += requirements.size;
    return memory;
  } catch (const vk::OutOfDeviceMemoryError&) {
    throw explain("out of device memory");
  } catch (const vk::OutOfHostMemoryError&) {
    throw explain("out of host memory");
  } catch (const vk::TooManyObjectsError&) {
    throw explain("too many allocations");
  }
}

void Device::release(vk::DeviceMemory memory, std::uint64_t bytes) {
  device_->freeMemory(memory);
  allocated_ -= bytes;
}

void Device::run(const std::vector<std::vector<vk::CommandBuffer>>& submissions) {
  for (std::size_t i = 0; i < submissions.size(); ++i) {
    try {
      queue_->submit(vk::SubmitInfo({}, {}, submissions[i]), i + 1 == submissions.size() ? fence_ : vk::Fence());
    } catch (const vk::SystemError& error) {
      if (i > 0) drain(i);
      fail("a submission", static_cast<vk::Result>(error.code().value()));
    }
  }
  wait(submissions.size());
}

// Waits for submissions that have no fence. An empty submission brings one, which is signalled after
// everything submitted before.
void Device::drain(std::size_t submissions) {
  try {
    queue_->submit(vk::ArrayProxy<const vk::SubmitInfo>(), fence_);
  } catch (const vk::DeviceLostError&) {
    lose("was lost: the driver reset it");
  } catch (const vk::SystemError& error) {
    lose(std::string("failed while it was working: ") + error.what());
  }
  wait(submissions);
}

void Device::wait(std::size_t submissions) {
  try {
    const auto usual = capabilities_.type == "cpu" ? 600.0 : 60.0;
    const auto each = options_.timeout_seconds > 0 ? options_.timeout_seconds : usual;
    const auto seconds = each * static_cast<double>(submissions);
    const auto patience = static_cast<std::uint64_t>(std::clamp(seconds, 0.0, 1e9) * 1e9);
    const auto result = device_->waitForFences(fence_, VK_TRUE, patience);
    if (result == vk::Result::eTimeout) {
      hung_ = true;
      lose("did not answer within " + std::to_string(static_cast<int>(seconds)) + " s");
    }
    device_->resetFences(fence_);
  } catch (const vk::DeviceLostError&) {
    lose("was lost: the driver reset it");
  } catch (const vk::SystemError& error) {
    lose(std::string("failed: ") + error.what());
  }
}

void Device::require_own_process() const {
  if (process_ != process_id())
    throw DeviceLost("Vulkan device " + std::to_string(capabilities_.index) + " (" + capabilities_.name +
                     ") was opened in the process that this one was forked from");
}

void Device::require_alive() const {
  require_own_process();
  if (!lost_.empty()) throw DeviceLost(lost_);
}

bool Device::abandoned() const { return hung_ || process_ != process_id(); }

void Device::wait_until_idle() noexcept {
  try {
    device_->waitIdle();
  } catch (const std::exception&) {  // the device is lost, so nothing runs any more
  }
}

void Device::lose(const std::string& reason) {
  lost_ = "Vulkan device " + std::to_string(capabilities_.index) + " (" + capabilities_.name + ") " + reason;
  // If something else failed, submitted work may still be running, and its buffers are about to be
  // freed. Waiting ends soon even if the device is lost.
  if (!hung_) wait_until_idle();
  throw DeviceLost(lost_);
}

void Device::fail(const std::string& doing, vk::Result result) {
  switch (result) {
    case vk::Result::eErrorDeviceLost: lose("was lost: the driver reset it");
    case vk::Result::eErrorOutOfHostMemory:
    case vk::Result::eErrorOutOfDeviceMemory:
    case vk::Result::eErrorOutOfPoolMemory:
    case vk::Result::eErrorFragmentedPool:
    case vk::Result::eErrorFragmentation:
    case vk::Result::eErrorMemoryMapFailed:
    case vk::Result::eErrorTooManyObjects:
      throw OutOfMemory(capabilities_.name + ": " + doing + " failed (" + vk::to_string(result) + "), with " +
                        megabytes(allocated_) + " in use here and a heap of " + megabytes(capabilities_.memory_bytes));
    default:
      throw Unavailable("Vulkan device " + std::to_string(capabilities_.index) + " (" + capabilities_.name +
                        "): " + doing + " failed: " + vk::to_string(result));
  }
}

std::string Device::cache_path() const {
  if (options_.cache_dir.empty()) return {};
  const auto properties = physical_->getProperties();
  std::string id;
  for (const auto byte : properties.pipelineCacheUUID) {
    constexpr char digits[] = "0123456789abcdef";
    id += digits[byte >> 4];
    id += digits[byte & 15];
  }
  return (std::filesystem::path(options_.cache_dir) / ("pipelines-" + id + ".bin")).string();
}

void Device::load_pipeline_cache() {
  const auto data = read_pipelines(cache_path());
  cache_ = device_->createPipelineCache({{}, data.size(), data.data()});
}

void Device::save_pipeline_cache() const noexcept {
  try {
    if (cache_ && !options_.cache_dir.empty()) write_pipelines(cache_path(), device_->getPipelineCacheData(cache_));
  } catch (const std::exception&) {  // without a cache the next start is just slower
  }
}

}  // namespace ebmvk
