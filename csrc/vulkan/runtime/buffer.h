// Device and host buffers with checked 64-bit sizes; freed with the object.
#pragma once

#include "vulkan/runtime/device.h"

#include <cstdint>

namespace ebmvk {

class Buffer {
 public:
  enum class Kind {
    device,   // device-local storage
    upload,   // host-visible: written by the host, read by copies and small parameter reads
    readback  // host-visible, and cached if possible
  };

  Buffer() = default;
  // `bytes` is rounded up to a multiple of 16, at least 16, because Vulkan has no empty buffers.
  Buffer(Device& device, Kind kind, std::uint64_t bytes);
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&& other) noexcept;

  explicit operator bool() const { return static_cast<bool>(buffer_); }
  vk::Buffer handle() const { return buffer_; }
  std::uint64_t bytes() const { return bytes_; }
  std::uint64_t offset() const { return offset_; }  // of the first usable byte; guard bands lie before and after
  void* mapped() const { return static_cast<char*>(mapped_) + offset_; }
  Kind kind() const { return kind_; }
  std::uint64_t id() const { return id_; }  // no other buffer of the process has it

  template <typename T>
  T* as() const {
    return static_cast<T*>(mapped());
  }

  static constexpr std::uint64_t kGuardBytes = 1024;    // a multiple of every alignment that Vulkan allows
  static constexpr std::uint32_t kPoison = 0x7fc0dead;  // a NaN, so that reading unwritten memory shows
  static constexpr std::uint32_t kGuard = 0x4b1dc0de;   // a number, so that anything computed from it differs

 private:
  void free() noexcept;

  Device* device_ = nullptr;
  Kind kind_ = Kind::device;
  std::uint64_t id_ = 0;
  vk::Buffer buffer_;
  vk::DeviceMemory memory_;
  std::uint64_t bytes_ = 0;
  std::uint64_t offset_ = 0;
  std::uint64_t allocated_ = 0;
  void* mapped_ = nullptr;
};

// a * b. Throws Unsupported if it overflows.
std::uint64_t checked_product(std::uint64_t a, std::uint64_t b);

}  // namespace ebmvk
