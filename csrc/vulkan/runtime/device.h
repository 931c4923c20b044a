// A Vulkan device of our own: instance, features, one compute queue behind a mutex, a pipeline
// cache kept on disk.
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

// A physical device and what it offers; filled in when devices are listed.
struct Capabilities {
  std::uint32_t index = 0;
  std::string name;
  std::string type;  // cpu, integrated, discrete, virtual or other
  std::string driver;
  std::uint32_t api_version = 0;
  std::uint64_t memory_bytes = 0;  // size of the largest device-local heap
  std::uint64_t max_storage_range = 0;
  std::uint32_t max_groups = 0;      // per dispatch, first dimension
  std::uint32_t max_group_size = 0;  // invocations
  std::uint32_t max_shared_bytes = 0;
  std::uint32_t max_bindings = 0;    // storage buffers per kernel
  std::uint64_t max_allocation = 0;  // bytes
  std::uint32_t subgroup_size = 0;   // the size that kernels request
  std::uint32_t max_subgroups = 0;   // per workgroup
  bool subgroup_arithmetic = false;
  bool subgroup_control = false;  // full subgroups of a required size
  // The most loop iterations of an invocation. llvmpipe silently leaves every loop after 65,535
  // iterations of all loops together (Mesa's LP_MAX_TGSI_LOOP_ITERATIONS), so it is smaller there;
  // elsewhere loops are unlimited.
  std::uint32_t loop_rounds = 0xffffffffu;
  bool float16 = false;                               // arithmetic and storage
  std::vector<std::pair<std::uint64_t, bool>> heaps;  // bytes, device-local
  std::string missing;                                // why the device can't be used; empty if it can
};

struct Options {
  bool validate = false;           // core and synchronisation validation; collects messages
  bool instrument = false;         // with validate: GPU-assisted validation of every access of every kernel
  bool portable = false;           // use kernels without subgroup arithmetic even if the device has it
  bool guard = false;              // poison buffers and put guard bands around them
  std::uint64_t shard_bytes = 0;   // largest storage-buffer range to use; 0: the device's limit
  std::uint64_t memory_limit = 0;  // most bytes to allocate through Vulkan; 0: no limit
  double slice_seconds = 0.2;      // target for the longest submission; drivers reset queues that hang for about 2 s
  double timeout_seconds = 60.0;   // a submission that takes longer counts as hung
  std::string pretend;             // for tests: gpu or smallest, to choose kernels and workgroups for such a device
  std::string cache_dir;           // folder of the pipeline cache; empty: keep none
};

// Messages of the validation layer.
struct Messages {
  std::mutex mutex;
  std::vector<std::string> texts;
};

class Device {
 public:
  static std::vector<Capabilities> list();
  // The loader's version, as VK_API_VERSION. Throws Unavailable without a loader.
  static std::uint32_t loader_version();

  Device(std::uint32_t index, const Options& options);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  const Capabilities& capabilities() const { return capabilities_; }
  const Options& options() const { return options_; }
  const vk::Device& handle() const { return *device_; }
  vk::PipelineCache pipeline_cache() const { return cache_; }
  std::uint64_t storage_range() const;  // largest range of a storage buffer that can be bound
  std::vector<std::string> take_messages();

  // For kp::Sequence, which shares ownership.
  const std::shared_ptr<vk::PhysicalDevice>& shared_physical() const { return physical_; }
  const std::shared_ptr<vk::Device>& shared_device() const { return device_; }
  const std::shared_ptr<vk::Queue>& shared_queue() const { return queue_; }
  std::uint32_t queue_family() const { return queue_family_; }

  // Must be held around everything that touches the queue.
  std::mutex& mutex() { return mutex_; }

  // Memory of the first type with all flags of `wanted`, or else of `needed`. Throws OutOfMemory,
  // with sizes.
  vk::DeviceMemory allocate(const vk::MemoryRequirements& requirements, vk::MemoryPropertyFlags needed,
                            vk::MemoryPropertyFlags wanted);
  void release(vk::DeviceMemory memory, std::uint64_t bytes);
  std::uint64_t allocated() const { return allocated_; }

  // Waits until everything submitted is done. Throws DeviceLost if the device is lost or takes too
  // long.
  void wait();
  // Throws DeviceLost if the device is lost, or belongs to the process that this one was forked
  // from. The second check needs no lock.
  void require_alive() const;
  void require_own_process() const;
  // True if nothing may be freed: work may still be running, or everything belongs to another
  // process.
  bool abandoned() const;
  [[noreturn]] void lose(const std::string& reason);
  // Throws the error that a failed Vulkan call means: OutOfMemory with sizes, DeviceLost, or
  // Unavailable.
  [[noreturn]] void fail(const std::string& doing, vk::Result result);
  // Calls f() and turns its Vulkan errors into those of fail().
  template <typename F>
  auto attempt(const std::string& doing, F f) -> decltype(f()) {
    try {
      return f();
    } catch (const vk::SystemError& error) {
      fail(doing, static_cast<vk::Result>(error.code().value()));
    }
  }

  // Live buffers with guard bands, and their sizes including these.
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
  long process_;  // the process that opened it
};

}  // namespace ebmvk
