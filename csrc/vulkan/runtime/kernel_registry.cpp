#include "vulkan/runtime/kernel_registry.h"

#include "vulkan/runtime/errors.h"
#include "vulkan/runtime/specialise.h"

#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>

namespace ebmvk {
namespace {

const char* name_of(Variant variant) {
  switch (variant) {
    case Variant::subgroup: return "subgroup";
    case Variant::resident: return "resident";
    default: return "portable";
  }
}

}  // namespace

std::vector<std::uint32_t> specialise_kernel(const KernelSource& source, const std::vector<std::uint32_t>& values,
                                             const std::string& folder) {
  if (folder.empty()) return specialise(source.code, source.bytes, values);
  const auto path =
      std::filesystem::path(folder) / (std::string(source.name) + "." + name_of(source.variant) + "." +
                                       (source.storage == Storage::float16 ? "float16" : "float32") + ".spv");
  std::ifstream file(path, std::ios::binary);
  const std::string bytes{std::istreambuf_iterator<char>(file), {}};
  if (!file || bytes.size() % 4) throw Unsupported("the module is missing or cut off: " + path.string());
  std::vector<std::uint32_t> code(bytes.size() / 4);
  std::memcpy(code.data(), bytes.data(), bytes.size());
  return specialise(code.data(), bytes.size(), values);
}

KernelRegistry::~KernelRegistry() {
  if (device_.abandoned()) return;
  for (const auto& [key, pipeline] : pipelines_) destroy(pipeline);
}

void KernelRegistry::destroy(const Pipeline& pipeline) const {
  device_.handle().destroy(pipeline.handle);
  device_.handle().destroy(pipeline.layout);
  device_.handle().destroy(pipeline.set_layout);
}

bool KernelRegistry::subgroups(std::uint32_t group) const {
  const auto& device = device_.capabilities();
  // Without control over subgroups, a device may run them at another size than it reports, or not
  // full, and kernels that rely on them would miss parts of rows. reduce.glsl supports subgroups of
  // 4 or more.
  return device.subgroup_arithmetic && device.subgroup_control && !device_.options().portable &&
         device.subgroup_size >= 4 && group % device.subgroup_size == 0 &&
         group / device.subgroup_size <= device.max_subgroups;
}

const KernelSource& KernelRegistry::choose(const std::string& name, std::uint32_t group, Storage storage,
                                           bool resident) const {
  const auto wanted = resident ? Variant::resident : subgroups(group) ? Variant::subgroup : Variant::portable;
  const KernelSource* portable = nullptr;
  for (const auto& source : kernel_table()) {
    if (name != source.name || storage != source.storage) continue;
    if (source.variant == wanted) return source;
    if (source.variant == Variant::portable) portable = &source;
  }
  if (resident || !portable) throw std::logic_error("no such kernel: " + name);
  return *portable;
}

const KernelSource& KernelRegistry::source_of(const PipelineKey& key) const {
  return choose(key.name, key.group, key.storage, key.resident);
}

// Everything but the handles.
Pipeline KernelRegistry::describe(const PipelineKey& key) const {
  Pipeline pipeline;
  pipeline.source = &source_of(key);
  pipeline.group = pipeline.source->group ? pipeline.source->group : key.group;
  if (pipeline.group > device_.capabilities().max_group_size)
    throw Unsupported("a workgroup of " + std::to_string(pipeline.group) + " for " + key.name + ": the device allows " +
                      std::to_string(device_.capabilities().max_group_size));
  if (key.constants.size() != pipeline.source->specialise)
    throw std::logic_error("wrong number of specialisation constants for " + key.name);
  return pipeline;
}

const Pipeline& KernelRegistry::get(const std::string& name, std::uint32_t group,
                                    const std::vector<std::uint32_t>& constants, Storage storage, bool resident) {
  PipelineKey key{name, group, constants, storage, resident};
  if (const auto known = pipelines_.find(key); known != pipelines_.end()) return known->second;
  auto pipeline = describe(key);
  build(pipeline, constants, required_subgroup(*pipeline.source));
  return pipelines_.emplace(std::move(key), pipeline).first->second;
}

std::vector<KernelSource> KernelRegistry::used() const {
  std::vector<KernelSource> sources;
  for (const auto& [key, pipeline] : pipelines_) sources.push_back(*pipeline.source);
  return sources;
}

std::vector<PipelineKey> KernelRegistry::used_keys() const {
  std::vector<PipelineKey> keys;
  for (const auto& [key, pipeline] : pipelines_) keys.push_back(key);
  return keys;
}

MachineCode KernelRegistry::inspect(const PipelineKey& key) const {
  const auto pipeline = describe(key);
  return inspect(*pipeline.source, pipeline.group, key.constants, required_subgroup(*pipeline.source));
}

MachineCode KernelRegistry::inspect(const KernelSource& source, std::uint32_t group,
                                    const std::vector<std::uint32_t>& constants, std::uint32_t subgroup_size) const {
  if (!device_.options().compile_only)
    throw std::logic_error("machine code is read from a device opened with compile_only");
  Pipeline pipeline;
  pipeline.source = &source;
  pipeline.group = group;
  build(pipeline, constants, subgroup_size, kReportMachineCode);
  auto code = device_.attempt(std::string("reading the machine code of ") + source.name,
                              [&] { return read_machine_code(device_.handle(), pipeline.handle); });
  destroy(pipeline);
  return code;
}

// Kernels that rely on full subgroups run at the size that the device reports.
std::uint32_t KernelRegistry::required_subgroup(const KernelSource& source) const {
  const auto& device = device_.capabilities();
  return source.variant != Variant::portable && device.subgroup_control ? device.subgroup_size : 0;
}

void KernelRegistry::build(Pipeline& pipeline, const std::vector<std::uint32_t>& constants, std::uint32_t subgroup_size,
                           vk::PipelineCreateFlags flags) const {
  const auto& device = device_.handle();
  const auto& source = *pipeline.source;

  std::vector<vk::DescriptorSetLayoutBinding> bindings;
  for (std::uint32_t i = 0; i < source.access.size(); ++i)
    bindings.emplace_back(i, vk::DescriptorType::eStorageBuffer, 1, vk::ShaderStageFlagBits::eCompute);
  auto set_layout = device.createDescriptorSetLayoutUnique({{}, bindings});
  const vk::PushConstantRange push(vk::ShaderStageFlagBits::eCompute, 0, source.push_bytes);
  vk::PipelineLayoutCreateInfo info({}, *set_layout);
  if (source.push_bytes) info.setPushConstantRanges(push);
  auto layout = device.createPipelineLayoutUnique(info);

  // Constant 0 is the workgroup's size. A kernel with a fixed size has no such constant.
  std::vector<std::uint32_t> values{pipeline.group};
  values.insert(values.end(), constants.begin(), constants.end());
  const auto code = specialise_kernel(source, values, device_.options().modules);
  const auto shader = device.createShaderModuleUnique({{}, 4 * code.size(), code.data()});
  vk::PipelineShaderStageCreateInfo stage({}, vk::ShaderStageFlagBits::eCompute, *shader, "main");
  const vk::PipelineShaderStageRequiredSubgroupSizeCreateInfo size(subgroup_size);
  if (subgroup_size) {
    stage.flags = vk::PipelineShaderStageCreateFlagBits::eRequireFullSubgroups;
    if (device_.capabilities().subgroup_required) stage.pNext = &size;
  }
  pipeline.handle = device_.attempt(std::string("compiling kernel ") + source.name, [&] {
    return device.createComputePipeline(device_.pipeline_cache(), {flags, stage, *layout}).value;
  });
  pipeline.layout = layout.release();
  pipeline.set_layout = set_layout.release();
}

}  // namespace ebmvk
