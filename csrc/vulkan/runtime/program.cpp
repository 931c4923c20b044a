#include "vulkan/runtime/program.h"

#include "vulkan/runtime/dispatch.h"
#include "vulkan/runtime/errors.h"
#include "vulkan/runtime/plan.h"

#include <algorithm>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace ebmvk {
namespace {

Touch touch(const View& view, Access access) {
  const auto handle = static_cast<VkBuffer>(view.buffer->handle());
  return {reinterpret_cast<std::uint64_t>(handle), view.start(), view.start() + view.size(), access};
}

// Commands after this barrier wait for all commands before it, and see what they wrote.
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

// A section as one operation of Kompute, because Kompute hands its command buffer to operations only.
class Section final : public kp::OpBase {
 public:
  explicit Section(std::function<void(const vk::CommandBuffer&)> body) : body_(std::move(body)) {}
  void record(const vk::CommandBuffer& commands) override { body_(commands); }
  void preEval(const vk::CommandBuffer&) override {}
  void postEval(const vk::CommandBuffer&) override {}

 private:
  std::function<void(const vk::CommandBuffer&)> body_;
};

}  // namespace

Traffic& Traffic::operator+=(const Traffic& more) {
  dispatches += more.dispatches;
  barriers += more.barriers;
  up += more.up;
  down += more.down;
  return *this;
}

Program::~Program() {
  if (device_.abandoned()) {  // keep its command buffers, which may still be running
    for (const auto& part : parts_) new std::shared_ptr<kp::Sequence>(part.sequence);
    return;
  }
  parts_.clear();
  if (pool_) device_.handle().destroy(pool_);
  if (stamps_) device_.handle().destroy(stamps_);
}

void Program::copy(const View& from, const View& to) {
  const auto bytes = std::min(from.size(), to.size());
  auto& part = parts_.back();
  part.traffic.up += from.buffer->kind() == Buffer::Kind::device ? 0 : bytes;
  part.traffic.down += to.buffer->kind() == Buffer::Kind::device ? 0 : bytes;
  part.nodes.push_back({{touch(View(*from.buffer, from.offset, bytes), Access::read),
                         touch(View(*to.buffer, to.offset, bytes), Access::write)},
                        [source = from.buffer->handle(), target = to.buffer->handle(),
                         region = vk::BufferCopy(from.start(), to.start(), bytes)](const vk::CommandBuffer& commands) {
                          commands.copyBuffer(source, target, region);
                        },
                        kNoSet});
}

void Program::fill(const View& where, std::uint32_t word) {
  parts_.back().nodes.push_back(
      {{touch(where, Access::write)},
       [buffer = where.buffer->handle(), begin = where.start(), bytes = where.size(),
        word](const vk::CommandBuffer& commands) { commands.fillBuffer(buffer, begin, bytes, word); },
       kNoSet});
}

void Program::add_kernel(const Pipeline& pipeline, const std::vector<View>& bindings, const void* push,
                         const Groups& groups) {
  const auto& source = *pipeline.source;
  if (bindings.size() != source.access.size()) throw std::logic_error(std::string("bindings of ") + source.name);
  auto& part = parts_.back();
  Set set{&pipeline, {}};
  Node node{{}, {}, sets_.size()};
  for (std::size_t i = 0; i < bindings.size(); ++i) {
    const auto& view = bindings[i];
    if (view.size() > device_.capabilities().max_storage_range)
      throw Unsupported(std::string("kernel ") + source.name + " would bind " + std::to_string(view.size()) +
                        " bytes in one range: the device allows " +
                        std::to_string(device_.capabilities().max_storage_range));
    node.touches.push_back(touch(view, source.access[i]));
    // With guard bands, the binding includes the band after the buffer; otherwise the driver would
    // drop the writes that we want to detect.
    const bool whole = view.offset + view.size() == view.buffer->bytes();
    set.buffers.emplace_back(view.buffer->handle(), view.start(), view.size() + (whole ? view.buffer->offset() : 0));
  }
  std::vector<std::uint32_t> constants(source.push_bytes / 4);
  if (!constants.empty()) std::memcpy(constants.data(), push, source.push_bytes);
  node.record = [&pipeline, constants = std::move(constants), groups](const vk::CommandBuffer& commands) {
    if (!constants.empty())
      commands.pushConstants<std::uint32_t>(pipeline.layout, vk::ShaderStageFlagBits::eCompute, 0, constants);
    commands.dispatch(groups.x, groups.y, groups.z);
  };
  sets_.push_back(std::move(set));
  part.nodes.push_back(std::move(node));
  ++part.traffic.dispatches;
}

std::uint32_t Program::cut() {
  parts_.emplace_back();
  return sections() - 1;
}

void Program::finish() {
  canary_ = Buffer(device_, Buffer::Kind::readback, std::uint64_t{4} * parts_.size());
  device_.attempt("making descriptors and time stamps", [&] { describe(); });
  for (std::uint32_t section = 0; section < sections(); ++section)
    device_.attempt("recording commands", [&] { record(section); });
}

void Program::describe() {
  if (device_.clock_bits()) stamps_ = device_.handle().createQueryPool({{}, vk::QueryType::eTimestamp, 2 * sections()});
  if (sets_.empty()) return;
  std::uint32_t buffers = 0;
  std::vector<vk::DescriptorSetLayout> layouts;
  for (const auto& set : sets_) {
    buffers += static_cast<std::uint32_t>(set.buffers.size());
    layouts.push_back(set.pipeline->set_layout);
  }
  const vk::DescriptorPoolSize size(vk::DescriptorType::eStorageBuffer, buffers);
  pool_ = device_.handle().createDescriptorPool({{}, static_cast<std::uint32_t>(sets_.size()), size});
  handles_ = device_.handle().allocateDescriptorSets({pool_, layouts});
  std::vector<vk::WriteDescriptorSet> writes;
  for (std::size_t i = 0; i < sets_.size(); ++i)
    writes.emplace_back(handles_[i], 0, 0, vk::DescriptorType::eStorageBuffer,
                        vk::ArrayProxyNoTemporaries<const vk::DescriptorImageInfo>{}, sets_[i].buffers);
  device_.handle().updateDescriptorSets(writes, {});
}

void Program::record(std::uint32_t section) {
  auto& part = parts_[section];
  take_dropped();
  part.sequence = std::make_shared<kp::Sequence>(device_.shared_physical(), device_.shared_device(),
                                                 device_.shared_queue(), device_.queue_family());
  if (const auto failure = take_dropped(); failure != vk::Result::eSuccess) {
    part.sequence.reset();
    device_.fail("making a command buffer", failure);
  }
  part.sequence->record(std::make_shared<Section>([&](const vk::CommandBuffer& commands) {
    part.commands = commands;
    if (stamps_) commands.resetQueryPool(stamps_, 2 * section, 2);
    record_stamp(commands, 2 * section);
    record_nodes(part, commands);
    record_stamp(commands, 2 * section + 1);
    commands.fillBuffer(canary_.handle(), canary_.offset() + std::uint64_t{4} * section, 4, Plan::kCanary);
    record_barrier(commands, true);
  }));
  part.sequence->end();
  part.nodes.clear();
}

// Records a time stamp: the time when everything before it is done.
void Program::record_stamp(const vk::CommandBuffer& commands, std::uint32_t number) const {
  if (stamps_) commands.writeTimestamp(vk::PipelineStageFlagBits::eBottomOfPipe, stamps_, number);
}

void Program::record_nodes(Part& part, const vk::CommandBuffer& commands) const {
  std::vector<std::vector<Touch>> touches;
  for (const auto& node : part.nodes) touches.push_back(node.touches);
  const auto barriers = barriers_between(touches);
  // The first barrier makes the results of earlier sections visible; the last lets the canary be
  // written after everything else.
  record_barrier(commands);
  part.traffic.barriers += 3;  // with the one for the host
  for (std::size_t i = 0; i < part.nodes.size(); ++i) {
    const auto& node = part.nodes[i];
    if (barriers[i]) {
      record_barrier(commands);
      ++part.traffic.barriers;
    }
    if (node.set != kNoSet) {
      const auto& pipeline = *sets_[node.set].pipeline;
      commands.bindPipeline(vk::PipelineBindPoint::eCompute, pipeline.handle);
      commands.bindDescriptorSets(vk::PipelineBindPoint::eCompute, pipeline.layout, 0, handles_[node.set], {});
    }
    node.record(commands);
  }
  record_barrier(commands);
}

double Program::run() {
  Plan plan(device_);
  for (std::uint32_t section = 0; section < sections(); ++section) plan.add(*this, section);
  return plan.run().seconds;
}

volatile std::uint32_t& Program::canary(std::uint32_t section) const {
  return canary_.as<volatile std::uint32_t>()[section];
}

double Program::seconds(std::uint32_t section) const {
  if (!stamps_) return 0;
  std::uint64_t stamps[2] = {0, 0};
  const auto result = device_.handle().getQueryPoolResults(stamps_, 2 * section, 2, sizeof(stamps), stamps,
                                                           sizeof(std::uint64_t), vk::QueryResultFlagBits::e64);
  if (static_cast<int>(result) < 0) device_.fail("reading time stamps", result);
  if (result != vk::Result::eSuccess) return 0;
  const auto bits = device_.clock_bits();
  const auto mask = bits >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << bits) - 1;
  return static_cast<double>((stamps[1] - stamps[0]) & mask) * device_.clock_seconds();
}

}  // namespace ebmvk
