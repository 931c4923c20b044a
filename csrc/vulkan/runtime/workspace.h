// The buffers and programs of one operation at one shape, kept for the next call.
#pragma once

#include "vulkan/runtime/tensor.h"

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

// The rows that a recorded program reads as one of its arguments, or writes as one of its results.
// They lie in a tensor itself if a kernel can be bound to it there; otherwise in a table of the
// program's own, to which they are copied from the host or from the tensor.
class Operand {
 public:
  Operand() = default;
  // Up to `rows` rows from `place` on. `host`: upload for an argument, readback for a result.
  Operand(Device& device, const Place& place, std::uint32_t rows, std::uint32_t width, std::uint32_t pitch,
          Buffer::Kind host);

  // What kernels bind.
  View on_device() const;
  // Record the transport of an argument before the kernels, and of a result after them. `params`
  // begins with the number of rows.
  void load(KernelRegistry& kernels, Program& program, const View& params) const;
  void store(KernelRegistry& kernels, Program& program, const View& params) const;
  // Copy rows from and to the host before and after the program runs; they do nothing for a tensor.
  template <typename T>
  void write(const Argument<T>& argument, std::uint64_t begin, std::uint64_t rows) {
    if (!place_.tensor) table_.write(argument.host + begin * width_, rows);
  }
  void write(const Argument<std::int64_t>& argument, std::uint64_t begin, std::uint64_t rows);
  template <typename T>
  void read(const Result<T>& result, std::uint64_t begin, std::uint64_t rows) const {
    if (!place_.tensor) table_.read(result.host + begin * width_, rows);
  }
  void read(const Result<std::int64_t>& result, std::uint64_t begin, std::uint64_t rows) const;
  const Table& table() const { return table_; }  // for rows on the host

 private:
  View whole() const;
  void copy_rows(KernelRegistry& kernels, Program& program, const View& params, bool to_tensor) const;

  Device* device_ = nullptr;
  Place place_;
  std::uint32_t rows_ = 0, width_ = 0, pitch_ = 0;
  bool bound_ = false;  // kernels bind the tensor itself
  Table table_;
  Buffer own_;
};

// The number of quads (vec4) of a row of d floats on the device.
inline std::uint32_t quads_of(std::uint32_t d) { return (d + 3) / 4; }

// The smallest power of two at or above n.
std::uint32_t power_of_two(std::uint64_t n);

// A cache that drops the least recently used entry. Entries stay while they are few and small
// compared with the device's memory.
class WorkspaceCache {
 public:
  WorkspaceCache(Device& device, TensorPool& pool) : device_(device), pool_(pool) {}

  // The workspace for `key`; `make` makes it if there isn't one. `points`: the id of the points it
  // is bound to, or 0. If the device's memory runs out, frees other workspaces and the memory of
  // freed tensors, and tries once more.
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
  TensorPool& pool_;
  std::map<std::string, Entry> entries_;
  std::uint64_t clock_ = 0;
};

}  // namespace ebmvk
