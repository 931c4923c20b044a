// A Vulkan device of our own: instance, features, one compute queue behind a mutex, a pipeline
// cache kept on disk.
#pragma once

#include "vulkan/runtime/capabilities.h"

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace ebmvk {

struct Options {
  bool validate = false;          // core and synchronisation validation; collects messages
  bool instrument = false;        // with validate: GPU-assisted validation of every access of every kernel
  bool portable = false;          // use kernels without subgroup arithmetic even if the device has it
  bool guard = false;             // poison buffers and put guard bands around them
  std::uint64_t shard_bytes = 0;  // largest storage-buffer range to use; 0: the device's limit
  // The largest allocation to make; 0: the device's limit.
  std::uint64_t allocation_bytes = 0;
  std::uint64_t memory_limit = 0;  // most bytes to allocate through Vulkan; 0: no limit
  double slice_seconds = 0.2;      // target for the longest submission; drivers reset queues that hang for about 2 s
  // A submission that takes longer counts as hung. 0: a minute, and ten on a CPU, whose drivers
  // compile kernels while the first submission that uses them runs.
  double timeout_seconds = 0.0;
  // Compile pipelines and report their machine code; nothing can be run. Makes no fence, because
  // RADV crashes if it is asked for one on behalf of a card that is not there.
  bool compile_only = false;
  std::string pretend;    // for tests: the profile of another device (profiles.h)
  std::string modules;    // for tests: a folder of modules that replace the built-in ones of the same name
  std::string cache_dir;  // folder of the pipeline cache; empty: keep none
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

  // The queue's clock for time stamps: the number of bits that count (0: it has none), and the
  // seconds of a tick.
  std::uint32_t clock_bits() const { return clock_bits_; }
  double clock_seconds() const { return clock_seconds_; }

  // Must be held around everything that touches the queue.
  std::mutex& mutex() { return mutex_; }

  // Memory of the first type with all flags of `wanted`, or else of `needed`. Throws OutOfMemory,
  // with sizes.
  vk::DeviceMemory allocate(const vk::MemoryRequirements& requirements, vk::MemoryPropertyFlags needed,
                            vk::MemoryPropertyFlags wanted);
  void release(vk::DeviceMemory memory, std::uint64_t bytes);
  std::uint64_t allocated() const { return allocated_; }

  // Submits each group of command buffers by itself, one right after another, and waits for the
  // last. Throws DeviceLost if the device is lost, or takes longer than Options::timeout_seconds per
  // submission. If a submission fails otherwise, nothing is left running.
  void run(const std::vector<std::vector<vk::CommandBuffer>>& submissions);
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
  void drain(std::size_t submissions);
  void wait(std::size_t submissions);
  void wait_until_idle() noexcept;
  void create_instance();
  void create_device();
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
  std::uint32_t clock_bits_ = 0;
  double clock_seconds_ = 0;
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
