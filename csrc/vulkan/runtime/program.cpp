#include "vulkan/runtime/program.h"

#include "vulkan/runtime/dispatch.h"
#include "vulkan/runtime/errors.h"

#include <chrono>
#include <cstring>
#include <stdexcept>

namespace ebmvk {
namespace {

constexpr std::uint32_t kCanary = 0x5eafbeefu;

// A full barrier: everything before is finished and visible to everything after. Our dispatches
// depend on one another anyway.
void record_barrier(const vk::CommandBuffer& commands, bool for_host = false) {
  using Stage = vk::PipelineStageFlagBits;
  using Flag = vk::AccessFlagBits;
  const vk::MemoryBarrier barrier(
      Flag::eShaderWrite | Flag::eTransferWrite,
      for_host ? vk::AccessFlags(Flag::eHostRead)
               : Flag::eShaderRead | Flag::eShaderWrite | Flag::eTransferRead | Flag::eTransferWrite);
  commands.pipelineBarrier(Stage::eComputeShader | Stage::eTransfer,
                           for_host ? vk::PipelineStageFlags(Stage::eHost) : Stage::eComputeShader | Stage::eTransfer,
                           {}, barrier, {}, {});
}

class Operation : public kp::OpBase {
 public:
  void preEval(const vk::CommandBuffer&) override {}
  void postEval(const vk::CommandBuffer&) override {}
};

class OpBarrier final : public Operation {
 public:
  explicit OpBarrier(bool for_host) : for_host_(for_host) {}
  void record(const vk::CommandBuffer& commands) override { record_barrier(commands, for_host_); }

 private:
  bool for_host_;
};

class OpCopy final : public Operation {
 public:
  OpCopy(const View& from, const View& to) : from_(from), to_(to) {}
  void record(const vk::CommandBuffer& commands) override {
    commands.copyBuffer(from_.buffer->handle(), to_.buffer->handle(),
                        vk::BufferCopy(from_.start(), to_.start(), std::min(from_.size(), to_.size())));
  }

 private:
  View from_, to_;
};

class OpFill final : public Operation {
 public:
  OpFill(const View& where, std::uint32_t word) : where_(where), word_(word) {}
  void record(const vk::CommandBuffer& commands) override {
    commands.fillBuffer(where_.buffer->handle(), where_.start(), where_.size(), word_);
  }

 private:
  View where_;
  std::uint32_t word_;
};

class OpKernel final : public Operation {
 public:
  OpKernel(const Pipeline& pipeline, vk::DescriptorSet set, const void* push, std::uint32_t x, std::uint32_t y)
      : pipeline_(pipeline), set_(set), push_(pipeline.source->push_bytes / 4), x_(x), y_(y) {
    if (!push_.empty()) std::memcpy(push_.data(), push, pipeline.source->push_bytes);
  }
  void record(const vk::CommandBuffer& commands) override {
    commands.bindPipeline(vk::PipelineBindPoint::eCompute, pipeline_.handle);
    commands.bindDescriptorSets(vk::PipelineBindPoint::eCompute, pipeline_.layout, 0, set_, {});
    if (!push_.empty())
      commands.pushConstants<std::uint32_t>(pipeline_.layout, vk::ShaderStageFlagBits::eCompute, 0, push_);
    commands.dispatch(x_, y_, 1);
  }

 private:
  const Pipeline& pipeline_;
  vk::DescriptorSet set_;
  std::vector<std::uint32_t> push_;
  std::uint32_t x_, y_;
};

template <typename F>
struct Finally {
  explicit Finally(F action) : act(action) {}
  ~Finally() { act(); }
  F act;
};

}  // namespace

bool Hazards::conflicts(vk::Buffer buffer, Access access) const {
  return written_.count(buffer) || (access != Access::read && read_.count(buffer));
}

void Hazards::note(vk::Buffer buffer, Access access) { (access == Access::read ? read_ : written_).insert(buffer); }

void Hazards::clear() {
  read_.clear();
  written_.clear();
}

Program::Program(Device& device) : device_(device), canary_(device, Buffer::Kind::readback, 16) {
  take_dropped();
  sequence_ = std::make_shared<kp::Sequence>(device.shared_physical(), device.shared_device(), device.shared_queue(),
                                             device.queue_family());
  if (const auto failure = take_dropped(); failure != vk::Result::eSuccess) {
    sequence_.reset();
    device.fail("making a command buffer", failure);
  }
  // Make the results of earlier submissions visible; waiting for their fence only made them
  // available.
  device.attempt("recording commands", [&] { sequence_->record(std::make_shared<OpBarrier>(false)); });
}

Program::~Program() {
  if (device_.abandoned()) {  // keep its command buffer, which may still be running
    new std::shared_ptr<kp::Sequence>(sequence_);
    return;
  }
  sequence_.reset();
  for (const auto pool : pools_) device_.handle().destroy(pool);
}

void Program::copy(const View& from, const View& to) {
  if (hazards_.conflicts(from.buffer->handle(), Access::read) ||
      hazards_.conflicts(to.buffer->handle(), Access::write)) {
    sequence_->record(std::make_shared<OpBarrier>(false));
    hazards_.clear();
  }
  hazards_.note(from.buffer->handle(), Access::read);
  hazards_.note(to.buffer->handle(), Access::write);
  sequence_->record(std::make_shared<OpCopy>(from, to));
}

void Program::fill(const View& where, std::uint32_t word) {
  if (hazards_.conflicts(where.buffer->handle(), Access::write)) {
    sequence_->record(std::make_shared<OpBarrier>(false));
    hazards_.clear();
  }
  hazards_.note(where.buffer->handle(), Access::write);
  sequence_->record(std::make_shared<OpFill>(where, word));
}

vk::DescriptorSet Program::describe(const Pipeline& pipeline, const std::vector<View>& bindings) {
  const auto count = static_cast<std::uint32_t>(bindings.size());
  const vk::DescriptorPoolSize size(vk::DescriptorType::eStorageBuffer, count);
  pools_.push_back(device_.handle().createDescriptorPool({{}, 1, size}));
  const auto set = device_.handle().allocateDescriptorSets({pools_.back(), pipeline.set_layout}).front();
  std::vector<vk::DescriptorBufferInfo> infos;
  for (const auto& view : bindings) {
    // With guard bands, the binding includes the band behind; otherwise the driver would drop the
    // writes that we want to detect.
    const bool whole = view.offset + view.size() == view.buffer->bytes();
    const auto guard = whole ? view.buffer->offset() : 0;
    infos.emplace_back(view.buffer->handle(), view.start(), view.size() + guard);
  }
  const vk::WriteDescriptorSet write(set, 0, 0, vk::DescriptorType::eStorageBuffer, {}, infos);
  device_.handle().updateDescriptorSets(write, {});
  return set;
}

void Program::add_kernel(const Pipeline& pipeline, const std::vector<View>& bindings, const void* push,
                         std::uint32_t groups, std::uint32_t groups_y) {
  const auto& access = pipeline.source->access;
  if (bindings.size() != access.size()) throw std::logic_error(std::string("bindings of ") + pipeline.source->name);
  bool conflict = false;
  for (std::size_t i = 0; i < access.size(); ++i) {
    if (bindings[i].size() > device_.capabilities().max_storage_range)
      throw Unsupported(std::string("kernel ") + pipeline.source->name + " would bind " +
                        std::to_string(bindings[i].size()) + " bytes in one range: the device allows " +
                        std::to_string(device_.capabilities().max_storage_range));
    conflict = conflict || hazards_.conflicts(bindings[i].buffer->handle(), access[i]);
  }
  if (conflict) {
    sequence_->record(std::make_shared<OpBarrier>(false));
    hazards_.clear();
  }
  for (std::size_t i = 0; i < access.size(); ++i) hazards_.note(bindings[i].buffer->handle(), access[i]);
  sequence_->record(std::make_shared<OpKernel>(pipeline, describe(pipeline, bindings), push, groups, groups_y));
  ++dispatches_;
}

void Program::finish() {
  // Write the canary after everything else, and make all of it visible to the host.
  sequence_->record(std::make_shared<OpBarrier>(false));
  sequence_->record(std::make_shared<OpFill>(View(canary_, 0, 4), kCanary));
  sequence_->record(std::make_shared<OpBarrier>(true));
  sequence_->end();
}

double Program::run() {
  device_.require_alive();
  volatile auto* canary = canary_.as<std::uint32_t>();
  *canary = 0;
  const auto start = std::chrono::steady_clock::now();
  take_dropped();
  device_.attempt("a submission", [&] { sequence_->evalAsync(); });
  // Kompute releases its fence when it waits, whatever the result. After a failure there is nothing
  // to wait for.
  const Finally give_back([&] {
    if (!device_.abandoned()) sequence_->evalAwait(0);
  });
  // Kompute ignores the result.
  if (const auto failure = take_dropped(); failure != vk::Result::eSuccess) device_.fail("a submission", failure);
  device_.wait();
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  if (*canary != kCanary) device_.lose("did not run what was submitted (the canary is dead)");
  ++runs_;
  return seconds.count();
}

}  // namespace ebmvk
