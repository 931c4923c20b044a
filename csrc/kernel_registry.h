// Pipelines by (kernel, workgroup size, specialisation, storage of the points), made on first use from the generated
// table.
#pragma once

#include "device.h"
#include "kernel_table.h"

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

class KernelRegistry {
 public:
  explicit KernelRegistry(Device& device) : device_(device) {}
  ~KernelRegistry();
  KernelRegistry(const KernelRegistry&) = delete;
  KernelRegistry& operator=(const KernelRegistry&) = delete;

  // `constants` are the manifest's `specialise`, in order. The subgroup variant is taken where the device has what it
  // needs and `group` is a multiple of the subgroup's size.
  // `storage` is that of the points that the kernel binds; `resident` asks for the variant that has them in registers.
  const Pipeline& get(const std::string& name, std::uint32_t group, const std::vector<std::uint32_t>& constants,
                      Storage storage = Storage::float32, bool resident = false);
  // Whether kernels that count on full subgroups of the device's size can run in workgroups of `group`.
  bool subgroups(std::uint32_t group) const;
  // The shaders in use so far.
  std::vector<KernelSource> used() const;

 private:
  const KernelSource& choose(const std::string& name, std::uint32_t group, Storage storage, bool resident) const;
  void build(Pipeline& pipeline, const std::vector<std::uint32_t>& constants);

  using Key = std::tuple<std::string, std::uint32_t, std::vector<std::uint32_t>, Storage, bool>;
  Device& device_;
  std::map<Key, Pipeline> pipelines_;
};

}  // namespace ebmvk
