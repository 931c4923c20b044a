// Wrappers of the Vulkan functions that can fail. Kompute drops the results of two of them; these are
// recorded here. Tests make any of them fail, below Kompute and below our own code.
#pragma once

#include <vulkan/vulkan.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace ebmvk {

// Puts the wrappers into VULKAN_HPP_DEFAULT_DISPATCHER; call it once, after that has its functions.
void wrap_functions();

// The first failure that Kompute dropped on this thread since the last call; VK_SUCCESS if there
// was none.
vk::Result take_dropped();

// Makes the `nth` call of `function` from now on (1: the next one) do nothing and return `result`;
// 0 cancels this. VK_SUCCESS simulates a driver that ignores calls. Applies to the whole process.
void inject_fault(const std::string& function, std::uint64_t nth, vk::Result result);
// How often `function` was called, injected failures included.
std::uint64_t calls_of(const std::string& function);
std::vector<std::string> wrapped_functions();

}  // namespace ebmvk
