// Copies, fills and kernels, recorded once and submitted many times. Kompute records; barriers,
// descriptor sets, time stamps and the check word are ours. plan.h submits.
#pragma once

#include "vulkan/runtime/buffer.h"
#include "vulkan/runtime/hazards.h"
#include "vulkan/runtime/kernel_registry.h"

#include <kompute/Sequence.hpp>

#include <functional>
#include <memory>
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

// The number of workgroups of a dispatch in each dimension.
struct Groups {
  std::uint32_t x = 1, y = 1, z = 1;
};

// What a submission does, for the counts. up, down: bytes copied from the host and to it.
struct Traffic {
  std::uint64_t dispatches = 0, barriers = 0, up = 0, down = 0;

  Traffic& operator+=(const Traffic& more);
};

// A program has one section or more. Each is a command buffer, so a plan can submit some or all of
// them, together or one after another.
class Program {
 public:
  explicit Program(Device& device) : device_(device), parts_(1) {}
  ~Program();
  Program(const Program&) = delete;
  Program& operator=(const Program&) = delete;

  void copy(const View& from, const View& to);
  void fill(const View& where, std::uint32_t word);
  template <typename Push>
  void kernel(const Pipeline& pipeline, const std::vector<View>& bindings, const Push& push, std::uint32_t groups,
              std::uint32_t groups_y = 1) {
    static_assert(sizeof(Push) % 4 == 0, "push constants are uint32");
    add_kernel(pipeline, bindings, &push, {groups, groups_y, 1});
  }
  // push: all words that the kernel takes.
  void kernel(const Pipeline& pipeline, const std::vector<View>& bindings, const std::vector<std::uint32_t>& push,
              const Groups& groups) {
    add_kernel(pipeline, bindings, push.data(), groups);
  }
  // Ends a section; returns the number of the next.
  std::uint32_t cut();

  // Records all sections. Nothing can be added afterwards, because recording a command buffer again
  // violates Vulkan's rules.
  void finish();
  // Submits all sections, waits, and checks that the device is alive and reached the end. Returns
  // the seconds it took.
  double run();
  std::uint32_t sections() const { return static_cast<std::uint32_t>(parts_.size()); }

 private:
  friend class Plan;

  static constexpr auto kNoSet = static_cast<std::size_t>(-1);

  using Recorder = std::function<void(const vk::CommandBuffer&)>;
  struct Node {
    std::vector<Touch> touches;
    Recorder record;
    std::size_t set;  // the number of its descriptor set, or kNoSet
  };
  struct Set {
    const Pipeline* pipeline;
    std::vector<vk::DescriptorBufferInfo> buffers;
  };
  struct Part {
    std::vector<Node> nodes;  // empty once recorded
    std::shared_ptr<kp::Sequence> sequence;
    vk::CommandBuffer commands;
    Traffic traffic;
  };

  void add_kernel(const Pipeline& pipeline, const std::vector<View>& bindings, const void* push, const Groups& groups);
  void describe();
  void record(std::uint32_t section);
  void record_stamp(const vk::CommandBuffer& commands, std::uint32_t number) const;
  void record_nodes(Part& part, const vk::CommandBuffer& commands) const;
  // The word that a section writes last.
  volatile std::uint32_t& canary(std::uint32_t section) const;
  // The seconds that a section took on the device when it last ran; 0 if the device has no clock.
  double seconds(std::uint32_t section) const;

  Device& device_;
  std::vector<Part> parts_;
  std::vector<Set> sets_;
  vk::DescriptorPool pool_;
  std::vector<vk::DescriptorSet> handles_;  // of the descriptor sets
  vk::QueryPool stamps_;                    // two for each section; null if the device has no clock
  Buffer canary_;
  bool ran_ = false;
};

}  // namespace ebmvk
