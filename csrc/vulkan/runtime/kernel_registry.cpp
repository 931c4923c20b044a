#include "vulkan/runtime/kernel_registry.h"

#include "vulkan/runtime/errors.h"
#include "vulkan/runtime/module_needs.h"
#include "vulkan/runtime/specialise.h"

#include <algorithm>
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
  for (const auto& [module, given] : given_) destroy(given.pipeline);
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
  build(pipeline, code_of(pipeline, constants), required_subgroup(*pipeline.source));
  return pipelines_.emplace(std::move(key), pipeline).first->second;
}

const Pipeline& KernelRegistry::get(const GivenModule& module) {
  if (const auto known = given_.find(module); known != given_.end()) return known->second.pipeline;
  if (module.access.empty()) throw std::invalid_argument(module.name + " binds no storage buffer");
  std::vector<std::uint32_t> values{module.group}, code;
  values.insert(values.end(), module.constants.begin(), module.constants.end());
  try {
    code = specialise(module.code.data(), 4 * module.code.size(), values);
  } catch (const std::logic_error& error) {
    throw std::invalid_argument(module.name + ": " + error.what());
  }
  require_fit(module, code);
  const auto place = given_.emplace(module, Given{}).first;
  auto& [source, pipeline] = place->second;
  source = {place->first.name.c_str(),
            module.subgroup ? Variant::subgroup : Variant::portable,
            Storage::float32,
            place->first.code.data(),
            4 * module.code.size(),
            module.access,
            module.push_bytes,
            static_cast<std::uint32_t>(module.constants.size()),
            0,
            false};
  pipeline.source = &source;
  pipeline.group = module.group;
  try {
    build(pipeline, code, required_subgroup(source));
  } catch (...) {
    given_.erase(place);
    throw;
  }
  return pipeline;
}

void KernelRegistry::require_fit(const GivenModule& module, const std::vector<std::uint32_t>& code) const {
  const auto& device = device_.capabilities();
  const auto needs = needs_of(code);
  if (needs.other_sets || needs.bindings > module.access.size())
    throw std::invalid_argument(module.name + " binds more than the " + std::to_string(module.access.size()) +
                                " storage buffers of set 0 that were named");
  const auto require = [&](const char* what, std::uint64_t needed, std::uint64_t most) {
    if (needed > most)
      throw Unsupported(module.name + " needs " + std::to_string(needed) + " " + what + ": the device allows " +
                        std::to_string(most));
  };
  require("invocations in a workgroup", std::max<std::uint64_t>(needs.invocations, module.group),
          device.max_group_size);
  require("bytes of shared memory", needs.shared_bytes, device.max_shared_bytes);
  require("bytes of push constants", module.push_bytes, device.max_push_bytes);
  require("storage buffers", module.access.size(), device.max_bindings);
  if (module.subgroup && !subgroups(module.group))
    throw Unsupported(module.name + " relies on full subgroups: the device has none in workgroups of " +
                      std::to_string(module.group));
  // Numbers of the SPIR-V specification: Float16, Float64, Int64, Int16, Int8, those of subgroups.
  for (const auto capability : needs.capabilities) {
    const bool small = capability == 9 && !device.float16;
    const bool off = capability == 10 || capability == 11 || capability == 22 || capability == 39;
    const bool subgroup = 61 <= capability && capability <= 68 && !device.subgroup_arithmetic;
    if (small || off || subgroup)
      throw Unsupported(module.name + " needs the SPIR-V capability " + std::to_string(capability) +
                        ", which this device doesn't offer or the engine doesn't enable");
  }
}

std::vector<std::uint32_t> KernelRegistry::code_of(const Pipeline& pipeline,
                                                   const std::vector<std::uint32_t>& constants) const {
  std::vector<std::uint32_t> values{pipeline.group};
  values.insert(values.end(), constants.begin(), constants.end());
  return specialise_kernel(*pipeline.source, values, device_.options().modules);
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
  build(pipeline, code_of(pipeline, constants), subgroup_size, kReportMachineCode);
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

void KernelRegistry::build(Pipeline& pipeline, const std::vector<std::uint32_t>& code, std::uint32_t subgroup_size,
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
