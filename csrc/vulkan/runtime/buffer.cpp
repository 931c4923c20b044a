#include "vulkan/runtime/buffer.h"

#include "vulkan/runtime/errors.h"
#include "vulkan/runtime/guard.h"

#include <atomic>
#include <limits>
#include <utility>

namespace ebmvk {
namespace {

std::uint64_t next_id() {
  static std::atomic<std::uint64_t> last{0};
  return ++last;
}

}  // namespace

std::uint64_t checked_product(std::uint64_t a, std::uint64_t b) {
  if (b != 0 && a > std::numeric_limits<std::uint64_t>::max() / b)
    throw Unsupported("a size of " + std::to_string(a) + " x " + std::to_string(b) + " bytes overflows");
  return a * b;
}

Buffer::Buffer(Device& device, Kind kind, std::uint64_t bytes) : device_(&device), kind_(kind), id_(next_id()) {
  device.require_alive();
  if (bytes > (std::uint64_t{1} << 62)) throw Unsupported("a buffer of " + std::to_string(bytes) + " bytes");
  bytes_ = bytes < 16 ? 16 : (bytes + 15) / 16 * 16;
  const bool guarded = kind == Kind::device && device.options().guard;
  offset_ = guarded ? kGuardBytes : 0;
  const auto usage = vk::BufferUsageFlagBits::eStorageBuffer | vk::BufferUsageFlagBits::eTransferSrc |
                     vk::BufferUsageFlagBits::eTransferDst;
  using Memory = vk::MemoryPropertyFlagBits;
  try {
    if (bytes_ > device.capabilities().max_allocation)
      throw OutOfMemory(device.capabilities().name + ": a buffer of " + std::to_string(bytes_) +
                        " bytes, and the device gives at most " + std::to_string(device.capabilities().max_allocation) +
                        " at once");
    buffer_ = device.handle().createBuffer({{}, bytes_ + 2 * offset_, usage});
    const auto requirements = device.handle().getBufferMemoryRequirements(buffer_);
    const auto host = Memory::eHostVisible | Memory::eHostCoherent;
    if (kind == Kind::device)
      memory_ = device.allocate(requirements, {}, Memory::eDeviceLocal);
    else
      memory_ =
          device.allocate(requirements, host, kind == Kind::readback ? Memory::eHostCached : vk::MemoryPropertyFlags{});
    allocated_ = requirements.size;
    device.handle().bindBufferMemory(buffer_, memory_, 0);
    if (kind != Kind::device) mapped_ = device.handle().mapMemory(memory_, 0, VK_WHOLE_SIZE);
    if (guarded) {
      poison(device, buffer_, bytes_ + 2 * offset_);
      device.guarded()[buffer_] = bytes_ + 2 * offset_;
    }
  } catch (const vk::SystemError& error) {
    free();
    device.fail("making a buffer of " + std::to_string(bytes_) + " bytes",
                static_cast<vk::Result>(error.code().value()));
  } catch (...) {
    free();
    throw;
  }
}

Buffer::~Buffer() { free(); }

Buffer::Buffer(Buffer&& other) noexcept { *this = std::move(other); }

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this == &other) return *this;
  free();
  device_ = std::exchange(other.device_, nullptr);
  kind_ = other.kind_;
  id_ = std::exchange(other.id_, 0);
  buffer_ = std::exchange(other.buffer_, nullptr);
  memory_ = std::exchange(other.memory_, nullptr);
  bytes_ = std::exchange(other.bytes_, 0);
  offset_ = std::exchange(other.offset_, 0);
  allocated_ = std::exchange(other.allocated_, 0);
  mapped_ = std::exchange(other.mapped_, nullptr);
  return *this;
}

void Buffer::free() noexcept {
  if (!device_ || device_->abandoned()) return;
  if (offset_) device_->guarded().erase(buffer_);
  if (buffer_) device_->handle().destroy(buffer_);
  if (memory_) device_->release(memory_, allocated_);
  buffer_ = nullptr;
  memory_ = nullptr;
}

}  // namespace ebmvk
