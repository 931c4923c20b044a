#include "vulkan/runtime/guard.h"

#include "vulkan/runtime/buffer.h"

#include <functional>

namespace ebmvk {
namespace {

void run_once(Device& device, const std::function<void(vk::CommandBuffer)>& record) {
  const auto pool = device.handle().createCommandPool({{}, device.queue_family()});
  const auto commands = device.handle().allocateCommandBuffers({pool, vk::CommandBufferLevel::ePrimary, 1}).front();
  commands.begin(vk::CommandBufferBeginInfo{});
  record(commands);
  const vk::MemoryBarrier barrier(vk::AccessFlagBits::eTransferWrite, vk::AccessFlagBits::eHostRead);
  commands.pipelineBarrier(vk::PipelineStageFlagBits::eTransfer, vk::PipelineStageFlagBits::eHost, {}, barrier, {}, {});
  commands.end();
  device.run({std::vector<vk::CommandBuffer>{commands}});
  device.handle().destroy(pool);
}

}  // namespace

void poison(Device& device, vk::Buffer buffer, std::uint64_t bytes) {
  constexpr auto band = Buffer::kGuardBytes;
  run_once(device, [&](vk::CommandBuffer commands) {
    commands.fillBuffer(buffer, 0, band, Buffer::kGuard);
    commands.fillBuffer(buffer, band, bytes - 2 * band, Buffer::kPoison);
    commands.fillBuffer(buffer, bytes - band, band, Buffer::kGuard);
  });
}

std::string damaged_guards(Device& device) {
  const std::lock_guard<std::mutex> lock(device.mutex());
  constexpr auto band = Buffer::kGuardBytes;
  Buffer readback(device, Buffer::Kind::readback, 2 * band);
  for (const auto& guarded : device.guarded()) {
    const vk::Buffer buffer(guarded.first);
    const auto bytes = guarded.second;
    const auto end = bytes - band;
    run_once(device, [&](vk::CommandBuffer commands) {
      commands.copyBuffer(buffer, readback.handle(), {vk::BufferCopy(0, 0, band), vk::BufferCopy(end, band, band)});
    });
    const auto* words = readback.as<std::uint32_t>();
    for (std::uint64_t i = 0; i < 2 * band / 4; ++i)
      if (words[i] != Buffer::kGuard)
        return "a buffer of " + std::to_string(bytes - 2 * band) + " bytes was written " +
               (i < band / 4 ? "before its start" : "after its end") + " (word " + std::to_string(i) +
               " of the guards)";
  }
  return {};
}

}  // namespace ebmvk
