// A Vulkan device of our own: instance, features, one compute queue behind a mutex, a pipeline cache kept on disk.
#pragma once

#include <vulkan/vulkan.hpp>

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

namespace ebmvk {

// What a physical device is and offers; filled when devices are listed.
struct Capabilities {
  std::uint32_t index = 0;
  std::string name;
  std::string type;  // cpu, integrated, discrete, virtual or other
  std::string driver;
  std::uint32_t api_version = 0;
  std::uint64_t memory_bytes = 0;  // of the largest device-local heap
  std::uint64_t max_storage_range = 0;
  std::uint32_t max_groups = 0;      // per dispatch, first dimension
  std::uint32_t max_group_size = 0;  // invocations
  std::uint32_t max_shared_bytes = 0;
  std::uint32_t max_bindings = 0;    // storage buffers of one kernel
  std::uint64_t max_allocation = 0;  // bytes
  std::uint32_t subgroup_size = 0;   // that kernels ask for
  std::uint32_t max_subgroups = 0;   // of a workgroup
  bool subgroup_arithmetic = false;
  bool subgroup_control = false;  // full subgroups of a required size
  // llvmpipe leaves every loop of a shader, without a word, once all of them together have gone round 65,535 times in
  // an invocation (Mesa's LP_MAX_TGSI_LOOP_ITERATIONS). Fewer than that there; elsewhere no limit.
  std::uint32_t loop_rounds = 0xffffffffu;
  bool float16 = false;                               // arithmetic and storage
  std::vector<std::pair<std::uint64_t, bool>> heaps;  // bytes, device-local
  std::string missing;                                // why it can't be used; empty where it can
};

struct Options {
  bool validate = false;           // core and synchronisation validation, messages collected
  bool instrument = false;         // with validate: GPU-assisted, which checks every access of every kernel
  bool portable = false;           // kernels without subgroup arithmetic even where the device has it
  bool guard = false;              // poison buffers and put guard bands around them
  std::uint64_t shard_bytes = 0;   // largest storage-buffer range used; 0: the device's
  std::uint64_t memory_limit = 0;  // bytes allocated through Vulkan; 0: what the device gives
  double slice_seconds = 0.2;      // longest submission aimed at: drivers reset queues that hang for about 2 s
  double timeout_seconds = 60.0;   // after which a submission counts as hung
  std::string pretend;             // for tests: gpu or smallest, to choose kernels and workgroups as for such a device
  std::string cache_dir;           // of the pipeline cache; empty: none is kept
};

// What the validation layer says.
struct Messages {
  std::mutex mutex;
  std::vector<std::string> texts;
};

class Device {
 public:
  static std::vector<Capabilities> list();
  // Of the loader, as VK_API_VERSION. Throws Unavailable where there is none.
  static std::uint32_t loader_version();

  Device(std::uint32_t index, const Options& options);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Capabilities& capabilities() const { return capabilities_; }
  const Options& options() const { return options_; }
  const vk::Device& handle() const { return *device_; }
  vk::PipelineCache pipeline_cache() const { return cache_; }
  std::uint64_t storage_range() const;  // largest range of a storage buffer that is bound
  std::vector<std::string> take_messages();

  // For kp::Sequence, which shares them.
  const std::shared_ptr<vk::PhysicalDevice>& shared_physical() const { return physical_; }
  const std::shared_ptr<vk::Device>& shared_device() const { return device_; }
  const std::shared_ptr<vk::Queue>& shared_queue() const { return queue_; }
  std::uint32_t queue_family() const { return queue_family_; }

  // Held around everything that touches the queue.
  std::mutex& mutex() { return mutex_; }

  // Memory of the first type that has all of `wanted`, else all of `needed`. Throws OutOfMemory with sizes.
  vk::DeviceMemory allocate(const vk::MemoryRequirements& requirements, vk::MemoryPropertyFlags needed,
                            vk::MemoryPropertyFlags wanted);
  void release(vk::DeviceMemory memory, std::uint64_t bytes);
  std::uint64_t allocated() const { return allocated_; }

  // Waits until all that was submitted is done; throws DeviceLost if the device is lost or takes too long.
  void wait();
  // Throws DeviceLost where the device is lost, or belongs to the process that this one was forked from. The second
  // part needs no lock.
  void require_alive() const;
  void require_own_process() const;
  // Nothing may be freed: something may still run, or it is all another process's.
  bool abandoned() const;
  [[noreturn]] void lose(const std::string& reason);
  // What a failed Vulkan call means: OutOfMemory with sizes, DeviceLost, or Unavailable.
  [[noreturn]] void fail(const std::string& doing, vk::Result result);
  // f(), with its Vulkan failures as fail() tells them.
  template <typename F>
  auto attempt(const std::string& doing, F f) -> decltype(f()) {
    try {
      return f();
    } catch (const vk::SystemError& error) {
      fail(doing, static_cast<vk::Result>(error.code().value()));
    }
  }

  // Live buffers with guard bands, and their whole size.
  std::map<VkBuffer, std::uint64_t>& guarded() { return guarded_; }

 private:
  void save_pipeline_cache() const noexcept;
  void wait_until_idle() noexcept;
  void create_instance();
  void create_device();
  void pretend();
  void load_pipeline_cache();
  void destroy() noexcept;
  std::string cache_path() const;

  Options options_;
  Capabilities capabilities_;
  vk::Instance instance_;
  vk::DebugUtilsMessengerEXT messenger_;
  std::shared_ptr<vk::PhysicalDevice> physical_;
  std::shared_ptr<vk::Device> device_;
  std::shared_ptr<vk::Queue> queue_;
  std::uint32_t queue_family_ = 0;
  vk::PhysicalDeviceMemoryProperties memory_;
  vk::PipelineCache cache_;
  vk::Fence fence_;
  std::mutex mutex_;
  std::shared_ptr<Messages> messages_;
  std::atomic<std::uint64_t> allocated_{0};
  std::map<VkBuffer, std::uint64_t> guarded_;
  std::string lost_;
  std::atomic<bool> hung_{false};
  int process_;  // that opened it
};

}  // namespace ebmvk
