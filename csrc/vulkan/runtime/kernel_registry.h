// Compute pipelines by kernel, workgroup size, specialisation and storage of the points. Made on
// first use from the generated table.
#pragma once

#include "vulkan/runtime/device.h"
#include "vulkan/runtime/kernel_table.h"
#include "vulkan/runtime/machine_code.h"

#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace ebmvk {

// What a pipeline is made for: the arguments of KernelRegistry::get.
struct PipelineKey {
  std::string name;
  std::uint32_t group = 0;
  std::vector<std::uint32_t> constants;
  Storage storage = Storage::float32;
  bool resident = false;

  friend bool operator<(const PipelineKey& a, const PipelineKey& b) {
    return std::tie(a.name, a.group, a.constants, a.storage, a.resident) <
           std::tie(b.name, b.group, b.constants, b.storage, b.resident);
  }
};

// A shader given as SPIR-V instead of by its name in the table. Its entry point is "main", and its
// storage buffers are in set 0. group: the workgroup's size, specialisation constant 0; `constants`
// follow. subgroup: it relies on full subgroups of the device's size.
struct GivenModule {
  std::string name;  // for messages
  std::vector<std::uint32_t> code;
  std::vector<Access> access;  // per binding
  std::uint32_t push_bytes = 0;
  std::uint32_t group = 0;
  std::vector<std::uint32_t> constants;
  bool subgroup = false;

  friend bool operator<(const GivenModule& a, const GivenModule& b) {  // the name doesn't count
    return std::tie(a.code, a.access, a.push_bytes, a.group, a.constants, a.subgroup) <
           std::tie(b.code, b.access, b.push_bytes, b.group, b.constants, b.subgroup);
  }
};

struct Pipeline {
  const KernelSource* source = nullptr;
  std::uint32_t group = 0;
  vk::DescriptorSetLayout set_layout;
  vk::PipelineLayout layout;
  vk::Pipeline handle;
};

// The kernel's module with its specialisation constants fixed to `values`, by number. `folder`: as
// Options::modules.
std::vector<std::uint32_t> specialise_kernel(const KernelSource& source, const std::vector<std::uint32_t>& values,
                                             const std::string& folder = {});

class KernelRegistry {
 public:
  explicit KernelRegistry(Device& device) : device_(device) {}
  ~KernelRegistry();
  KernelRegistry(const KernelRegistry&) = delete;
  KernelRegistry& operator=(const KernelRegistry&) = delete;

  // `constants`: the manifest's `specialise`, in order. `storage`: of the points that the kernel
  // binds. `resident`: use the variant that keeps them in registers. The subgroup variant is used
  // if the device supports it and `group` is a multiple of the subgroup's size.
  const Pipeline& get(const std::string& name, std::uint32_t group, const std::vector<std::uint32_t>& constants,
                      Storage storage = Storage::float32, bool resident = false);
  // The same for a module; equal ones share a pipeline. Throws std::invalid_argument if it isn't a
  // module of this kind, and Unsupported if it needs more than the device has.
  const Pipeline& get(const GivenModule& module);
  // True if kernels that rely on full subgroups of the device's size can run in workgroups of
  // `group`.
  bool subgroups(std::uint32_t group) const;
  // The shaders used so far, and what they were specialised for.
  std::vector<KernelSource> used() const;
  std::vector<PipelineKey> used_keys() const;

  // The shader that get() takes for a key.
  const KernelSource& source_of(const PipelineKey& key) const;
  // Compiles as get() does, but keeps nothing, and returns the machine code. The device must have
  // been opened with Options::compile_only.
  MachineCode inspect(const PipelineKey& key) const;
  // The same for any shader. `subgroup_size`: the one to require; 0: the driver decides.
  MachineCode inspect(const KernelSource& source, std::uint32_t group, const std::vector<std::uint32_t>& constants,
                      std::uint32_t subgroup_size) const;

 private:
  const KernelSource& choose(const std::string& name, std::uint32_t group, Storage storage, bool resident) const;
  std::uint32_t required_subgroup(const KernelSource& source) const;
  Pipeline describe(const PipelineKey& key) const;
  // The module with its constants. Constant 0 is the workgroup's size; a kernel with a fixed size
  // has no such constant.
  std::vector<std::uint32_t> code_of(const Pipeline& pipeline, const std::vector<std::uint32_t>& constants) const;
  void require_fit(const GivenModule& module, const std::vector<std::uint32_t>& code) const;
  void build(Pipeline& pipeline, const std::vector<std::uint32_t>& code, std::uint32_t subgroup_size,
             vk::PipelineCreateFlags flags = {}) const;
  void destroy(const Pipeline& pipeline) const;

  struct Given {
    KernelSource source;  // points into the key
    Pipeline pipeline;
  };

  Device& device_;
  std::map<PipelineKey, Pipeline> pipelines_;
  std::map<GivenModule, Given> given_;
};

}  // namespace ebmvk
