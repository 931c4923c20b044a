// What a driver says about a compiled pipeline (VK_KHR_pipeline_executable_properties): registers,
// spills and the like, and the disassembly.
#pragma once

#include <vulkan/vulkan.hpp>

#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace ebmvk {

// The flags that a pipeline must be created with, so that its machine code can be read.
constexpr auto kReportMachineCode =
    vk::PipelineCreateFlagBits::eCaptureStatisticsKHR | vk::PipelineCreateFlagBits::eCaptureInternalRepresentationsKHR;

struct MachineCode {
  std::uint32_t subgroup_size = 0;
  std::map<std::string, double> statistics;  // by the driver's names for them
  std::map<std::string, std::string> texts;  // representations, for example "Assembly"
};

// Adds the device extension that reports machine code. Throws Unavailable if the device lacks it.
void require_machine_code(vk::PhysicalDevice device, std::vector<const char*>& extensions);

// The pipeline's machine code. The pipeline has one shader, and was created with
// kReportMachineCode.
MachineCode read_machine_code(vk::Device device, vk::Pipeline pipeline);

}  // namespace ebmvk
