#include "vulkan/runtime/dispatch.h"

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <type_traits>

namespace ebmvk {
namespace {

thread_local VkResult dropped = VK_SUCCESS;

struct Record {
  const char* name;
  std::atomic<std::uint64_t> calls{0};
  std::atomic<std::uint64_t> fails_at{0};  // the number of the call that fails; 0: none
  std::atomic<VkResult> result{VK_SUCCESS};

  explicit Record(const char* function) : name(function) {}
  bool strikes() { return ++calls == fails_at; }
};

std::vector<Record*>& records() {
  static std::vector<Record*> all;
  return all;
}

// Wraps a function that returns a result: counts calls, and fails if a test wants that.
template <auto Member, typename Function>
struct Wrapper;
template <auto Member, typename... Arguments>
struct Wrapper<Member, VkResult(VKAPI_PTR*)(Arguments...)> {
  static inline VkResult(VKAPI_PTR* driver)(Arguments...) = nullptr;
  static inline Record* record = nullptr;

  static VKAPI_ATTR VkResult VKAPI_CALL call(Arguments... arguments) {
    return record->strikes() ? record->result.load() : driver(arguments...);
  }
  static void install(const char* name) {
    auto& slot = VULKAN_HPP_DEFAULT_DISPATCHER.*Member;
    driver = slot;
    records().push_back(record = new Record(name));  // lives as long as the process, like the wrappers
    slot = call;
  }
};

// The class is in vk up to Vulkan-Hpp 1.3.300, and in vk::detail since then.
using Dispatcher = std::remove_reference_t<decltype(VULKAN_HPP_DEFAULT_DISPATCHER)>;

#define EBMVK_WRAP(FUNCTION) Wrapper<&Dispatcher::FUNCTION, PFN_##FUNCTION>::install(#FUNCTION)

VkResult note(VkResult result) {
  if (result < 0 && dropped == VK_SUCCESS) dropped = result;
  return result;
}

// On top of the wrappers: functions whose result Kompute ignores, and functions that it then calls
// with a null handle.
struct Kompute {
  static inline PFN_vkCreateCommandPool create_pool = nullptr;
  static inline PFN_vkAllocateCommandBuffers allocate_commands = nullptr;
  static inline PFN_vkFreeCommandBuffers free_commands = nullptr;

  static VKAPI_ATTR VkResult VKAPI_CALL on_create_pool(VkDevice device, const VkCommandPoolCreateInfo* info,
                                                       const VkAllocationCallbacks* callbacks, VkCommandPool* pool) {
    *pool = VK_NULL_HANDLE;
    return note(create_pool(device, info, callbacks, pool));
  }
  static VKAPI_ATTR VkResult VKAPI_CALL on_allocate_commands(VkDevice device, const VkCommandBufferAllocateInfo* info,
                                                             VkCommandBuffer* commands) {
    for (std::uint32_t i = 0; i < info->commandBufferCount; ++i) commands[i] = VK_NULL_HANDLE;
    if (info->commandPool == VK_NULL_HANDLE) return note(VK_ERROR_OUT_OF_HOST_MEMORY);
    return note(allocate_commands(device, info, commands));
  }
  static VKAPI_ATTR void VKAPI_CALL on_free_commands(VkDevice device, VkCommandPool pool, std::uint32_t count,
                                                     const VkCommandBuffer* commands) {
    if (pool != VK_NULL_HANDLE && commands[0] != VK_NULL_HANDLE) free_commands(device, pool, count, commands);
  }
};

template <typename Function>
void put_on_top(Function& slot, Function& below, Function wrapper) {
  below = slot;
  slot = wrapper;
}

}  // namespace

void wrap_functions() {
  EBMVK_WRAP(vkCreateDevice);
  EBMVK_WRAP(vkCreatePipelineCache);
  EBMVK_WRAP(vkCreateBuffer);
  EBMVK_WRAP(vkAllocateMemory);
  EBMVK_WRAP(vkBindBufferMemory);
  EBMVK_WRAP(vkMapMemory);
  EBMVK_WRAP(vkCreateShaderModule);
  EBMVK_WRAP(vkCreateDescriptorSetLayout);
  EBMVK_WRAP(vkCreatePipelineLayout);
  EBMVK_WRAP(vkCreateComputePipelines);
  EBMVK_WRAP(vkCreateDescriptorPool);
  EBMVK_WRAP(vkAllocateDescriptorSets);
  EBMVK_WRAP(vkCreateQueryPool);
  EBMVK_WRAP(vkCreateCommandPool);
  EBMVK_WRAP(vkAllocateCommandBuffers);
  EBMVK_WRAP(vkBeginCommandBuffer);
  EBMVK_WRAP(vkEndCommandBuffer);
  EBMVK_WRAP(vkCreateFence);
  EBMVK_WRAP(vkQueueSubmit);
  EBMVK_WRAP(vkWaitForFences);
  EBMVK_WRAP(vkResetFences);
  EBMVK_WRAP(vkGetQueryPoolResults);
  auto& table = VULKAN_HPP_DEFAULT_DISPATCHER;
  put_on_top(table.vkCreateCommandPool, Kompute::create_pool, &Kompute::on_create_pool);
  put_on_top(table.vkAllocateCommandBuffers, Kompute::allocate_commands, &Kompute::on_allocate_commands);
  put_on_top(table.vkFreeCommandBuffers, Kompute::free_commands, &Kompute::on_free_commands);
}

vk::Result take_dropped() {
  const auto result = dropped;
  dropped = VK_SUCCESS;
  return static_cast<vk::Result>(result);
}

void inject_fault(const std::string& function, std::uint64_t nth, vk::Result result) {
  for (auto* record : records()) {
    if (function != record->name) continue;
    record->result = static_cast<VkResult>(result);
    record->fails_at = nth ? record->calls + nth : 0;
    return;
  }
  throw std::invalid_argument(function + " isn't wrapped, or no device has been opened yet");
}

std::uint64_t calls_of(const std::string& function) {
  for (const auto* record : records())
    if (function == record->name) return record->calls;
  return 0;
}

std::vector<std::string> wrapped_functions() {
  std::vector<std::string> names;
  for (const auto* record : records()) names.emplace_back(record->name);
  return names;
}

}  // namespace ebmvk
