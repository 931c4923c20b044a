// Compute pipelines by kernel, workgroup size, specialisation and storage of the points. Made on
// first use from the generated table.
#pragma once

#include "vulkan/runtime/device.h"
#include "vulkan/runtime/kernel_table.h"

#include <map>
#include <string>
#include <tuple>
#include <vector>

namespace ebmvk {

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
  // True if kernels that rely on full subgroups of the device's size can run in workgroups of
  // `group`.
  bool subgroups(std::uint32_t group) const;
  // The shaders used so far.
  std::vector<KernelSource> used() const;

 private:
  const KernelSource& choose(const std::string& name, std::uint32_t group, Storage storage, bool resident) const;
  void build(Pipeline& pipeline, const std::vector<std::uint32_t>& constants);

  using Key = std::tuple<std::string, std::uint32_t, std::vector<std::uint32_t>, Storage, bool>;
  Device& device_;
  std::map<Key, Pipeline> pipelines_;
};

}  // namespace ebmvk
