#include "vulkan/runtime/machine_code.h"

#include "vulkan/runtime/errors.h"

#include <algorithm>

namespace ebmvk {
namespace {

double number(const vk::PipelineExecutableStatisticKHR& statistic) {
  switch (statistic.format) {
    case vk::PipelineExecutableStatisticFormatKHR::eBool32: return statistic.value.b32;
    case vk::PipelineExecutableStatisticFormatKHR::eInt64: return static_cast<double>(statistic.value.i64);
    case vk::PipelineExecutableStatisticFormatKHR::eFloat64: return statistic.value.f64;
    default: return static_cast<double>(statistic.value.u64);
  }
}

// The first call asks for the sizes of the texts, the second one for the texts.
std::map<std::string, std::string> read_texts(vk::Device device, const vk::PipelineExecutableInfoKHR& executable) {
  auto found = device.getPipelineExecutableInternalRepresentationsKHR(executable);
  std::vector<std::string> texts(found.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    texts[i].resize(found[i].dataSize);
    found[i].pData = texts[i].data();
  }
  auto count = static_cast<std::uint32_t>(found.size());
  const auto result = device.getPipelineExecutableInternalRepresentationsKHR(&executable, &count, found.data());
  if (result != vk::Result::eSuccess) throw Unavailable("the driver cut off its report: " + vk::to_string(result));
  std::map<std::string, std::string> out;
  for (std::size_t i = 0; i < found.size(); ++i) {
    if (!found[i].isText) continue;
    texts[i].resize(texts[i].find('\0') == std::string::npos ? found[i].dataSize : texts[i].find('\0'));
    out[found[i].name.data()] = texts[i];
  }
  return out;
}

}  // namespace

void require_machine_code(vk::PhysicalDevice device, std::vector<const char*>& extensions) {
  const auto offered = device.enumerateDeviceExtensionProperties();
  if (std::none_of(offered.begin(), offered.end(), [](const auto& extension) {
        return std::string(extension.extensionName.data()) == VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME;
      }))
    throw Unavailable("the driver doesn't report machine code (VK_KHR_pipeline_executable_properties); RADV does");
  extensions.push_back(VK_KHR_PIPELINE_EXECUTABLE_PROPERTIES_EXTENSION_NAME);
}

MachineCode read_machine_code(vk::Device device, vk::Pipeline pipeline) {
  const auto executables = device.getPipelineExecutablePropertiesKHR(vk::PipelineInfoKHR(pipeline));
  if (executables.size() != 1)
    throw Unavailable("the driver made " + std::to_string(executables.size()) + " programs of one shader");
  const vk::PipelineExecutableInfoKHR executable(pipeline, 0);
  MachineCode out;
  out.subgroup_size = executables.front().subgroupSize;
  for (const auto& statistic : device.getPipelineExecutableStatisticsKHR(executable))
    out.statistics[statistic.name.data()] = number(statistic);
  out.texts = read_texts(device, executable);
  return out;
}

}  // namespace ebmvk
