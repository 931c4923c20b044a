// A recorded sequence of copies and kernels that can be submitted many times: an immutable
// kp::Sequence of our own operations. Kompute records and submits; barriers, descriptor sets,
// waiting and the checks afterwards are ours.
#pragma once

#include "vulkan/runtime/buffer.h"
#include "vulkan/runtime/kernel_registry.h"

#include <kompute/Sequence.hpp>

#include <memory>
#include <set>
#include <vector>

namespace ebmvk {

// A part of a buffer; bytes = 0 means up to its end.
struct View {
  const Buffer* buffer;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;

  View(const Buffer& whole) : buffer(&whole) {}  // NOLINT: a buffer is a view of itself
  View(const Buffer& whole, std::uint64_t from, std::uint64_t size) : buffer(&whole), offset(from), bytes(size) {}
  std::uint64_t size() const { return bytes ? bytes : buffer->bytes() - offset; }
  std::uint64_t start() const { return buffer->offset() + offset; }
};

// Tracks which buffers were accessed since the last barrier, to know when the next access needs
// one.
class Hazards {
 public:
  // True if reading or writing the buffer now would conflict with an earlier access, so that a
  // barrier is needed first.
  bool conflicts(vk::Buffer buffer, Access access) const;
  void note(vk::Buffer buffer, Access access);
  void clear();

 private:
  std::set<VkBuffer> read_, written_;
};

class Program {
 public:
  explicit Program(Device& device);
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void copy(const View& from, const View& to);
  void fill(const View& where, std::uint32_t word);
  template <typename Push>
  void kernel(const Pipeline& pipeline, const std::vector<View>& bindings, const Push& push, std::uint32_t groups,
              std::uint32_t groups_y = 1) {
    static_assert(sizeof(Push) % 4 == 0, "push constants are uint32");
    add_kernel(pipeline, bindings, &push, groups, groups_y);
  }

  // Ends the recording. Nothing can be added afterwards, because recording a sequence again
  // violates Vulkan's rules.
  void finish();
  // Submits, waits, and checks that the device is alive and reached the end. Returns the seconds it
  // took.
  double run();
  std::uint32_t dispatches() const { return dispatches_; }
  std::uint64_t runs() const { return runs_; }  // submissions that ended well

 private:
  void add_kernel(const Pipeline& pipeline, const std::vector<View>& bindings, const void* push, std::uint32_t groups,
                  std::uint32_t groups_y);
  vk::DescriptorSet describe(const Pipeline& pipeline, const std::vector<View>& bindings);

  Device& device_;
  std::shared_ptr<kp::Sequence> sequence_;
  std::vector<vk::DescriptorPool> pools_;
  Hazards hazards_;
  Buffer canary_;
  std::uint32_t dispatches_ = 0;
  std::uint64_t runs_ = 0;
};

}  // namespace ebmvk
