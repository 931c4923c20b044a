// The Vulkan functions that can fail, wrapped. Kompute drops the results of three of them: those are noted here. Tests
// let any of them fail, below Kompute and below us.
#pragma once

#include <vulkan/vulkan.hpp>

#include <cstdint>
#include <string>
#include <vector>

namespace ebmvk {

// Puts the wrappers into VULKAN_HPP_DEFAULT_DISPATCHER; once, when it has its functions.
void wrap_functions();

// The first failure that Kompute dropped on this thread since the last call; VK_SUCCESS where there was none.
vk::Result take_dropped();

// The `nth` call from now of `function` (1: the next one) returns `result` and does nothing; 0 takes the fault back.
// VK_SUCCESS makes a driver that swallows calls. Process-wide.
void inject_fault(const std::string& function, std::uint64_t nth, vk::Result result);
// How often `function` was called, injected failures included.
std::uint64_t calls_of(const std::string& function);
std::vector<std::string> wrapped_functions();

}  // namespace ebmvk
