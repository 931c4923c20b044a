// The buffers and programs of one operation at one shape, kept for the next call.
#pragma once

#include "vulkan/runtime/program.h"

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <string>

namespace ebmvk {

// Rows of 32-bit words that are copied between host and device. On the device each row takes
// `pitch` words; those beyond `width` are zero.
class Table {
 public:
  Table() = default;
  Table(Device& device, std::uint64_t rows, std::uint32_t width, std::uint32_t pitch, Buffer::Kind host);

  const Buffer& on_host() const { return host_; }
  const Buffer& on_device() const { return device_; }
  std::uint32_t pitch() const { return pitch_; }
  // `from` and `to` are dense (rows, width).
  void write(const void* from, std::uint64_t rows);
  void read(void* to, std::uint64_t rows) const;

 private:
  Buffer host_, device_;
  std::uint32_t width_ = 0, pitch_ = 0;
};

// The number of quads (vec4) of a row of d floats on the device.
inline std::uint32_t quads_of(std::uint32_t d) { return (d + 3) / 4; }

// The smallest power of two at or above n.
std::uint32_t power_of_two(std::uint64_t n);

// A cache that drops the least recently used entry. Entries stay while they are few and small
// compared with the device's memory.
class WorkspaceCache {
 public:
  explicit WorkspaceCache(Device& device) : device_(device) {}

  // The workspace for `key`; `make` makes it if there isn't one. `points`: the id of the points it
  // is bound to, or 0. If the device's memory runs out, frees other workspaces and tries once more.
  template <typename W, typename Make>
  W& get(const std::string& key, std::uint64_t points, Make make) {
    return *static_cast<W*>(find(key, points, [&]() -> std::shared_ptr<void> { return make(); }));
  }
  void forget(std::uint64_t points);
  void clear() { entries_.clear(); }

 private:
  struct Entry {
    std::shared_ptr<void> workspace;
    std::uint64_t points = 0;
    std::uint64_t bytes = 0;
    std::uint64_t used = 0;
  };
  void* find(const std::string& key, std::uint64_t points, const std::function<std::shared_ptr<void>()>& make);
  void make_room();

  Device& device_;
  std::map<std::string, Entry> entries_;
  std::uint64_t clock_ = 0;
};

}  // namespace ebmvk
