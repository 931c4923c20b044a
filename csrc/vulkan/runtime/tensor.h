// Tensors that stay in device memory between operations, and the pool that their memory comes from.
#pragma once

#include "vulkan/runtime/program.h"

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace ebmvk {

// What a tensor holds. index: whole numbers below 2^32, which are int64 on the host.
enum class Element { float32, index };

// Memory of tensors that were freed, for the next ones of the same size. Freeing a tensor takes only
// the pool's own lock, because it may happen in any thread, while another one works on the device.
class TensorPool {
 public:
  explicit TensorPool(Device& device) : device_(device) {}

  // Memory for at least `bytes`. Needs the device's mutex. With Options::guard the memory is
  // poisoned, so that reading old contents shows.
  Buffer take(std::uint64_t bytes);
  void give_back(Buffer&& memory) noexcept;
  // Frees all memory that no tensor uses. Needs the device's mutex.
  void clear();
  // Bytes of device memory that no tensor uses.
  std::uint64_t idle() const;

 private:
  std::uint64_t size_class(std::uint64_t bytes) const;

  Device& device_;
  mutable std::mutex mutex_;
  std::multimap<std::uint64_t, Buffer> idle_;
};

// Rows of 32-bit words in device memory, with the shape (rows,) or (rows, width). A row takes `pitch`
// words; those beyond `width` are zero. Values never change once the operation that made the tensor
// has returned. Its memory goes back to the pool with the object.
class Tensor {
 public:
  struct Shape {
    std::uint32_t rows = 0;
    std::uint32_t width = 1;
    std::uint32_t pitch = 1;
    bool vector = false;  // of shape (rows,)
    Element element = Element::float32;
  };

  // `keeper` owns the device and the pool. Needs the device's mutex.
  Tensor(std::shared_ptr<void> keeper, Device& device, TensorPool& pool, const Shape& shape);
  ~Tensor();
  Tensor(const Tensor&) = delete;
  Tensor& operator=(const Tensor&) = delete;

  const Shape& shape() const { return shape_; }
  std::uint32_t rows() const { return shape_.rows; }
  // Drops the rows from `rows` on, for results whose number is known only afterwards.
  void keep(std::uint32_t rows) { shape_.rows = std::min(shape_.rows, rows); }
  std::uint32_t width() const { return shape_.width; }
  std::uint32_t pitch() const { return shape_.pitch; }
  std::uint64_t bytes() const { return std::uint64_t{4} * shape_.rows * shape_.pitch; }
  const Buffer& memory() const { return memory_; }
  const Device& device() const { return device_; }

  // A number above all values of an index tensor, so that ids can be checked without reading them.
  std::uint64_t below() const { return below_; }
  void set_below(std::uint64_t below) { below_ = below; }

 private:
  std::shared_ptr<void> keeper_;
  Device& device_;
  TensorPool& pool_;
  Shape shape_;
  std::uint64_t below_ = std::uint64_t{1} << 32;
  Buffer memory_;
};

// Where the rows of an argument or a result lie: from row `begin` of a tensor, or on the host (null).
struct Place {
  const Tensor* tensor = nullptr;
  std::uint64_t begin = 0;

  // Differs between programs that were recorded for different memory.
  std::string key() const;
};

// The keys of all places. Two sets of places have the same keys only if a program recorded for one
// suits the other.
std::string keys_of(const std::vector<Place>& arguments, const std::vector<Place>& results);

// An argument of an operation: dense rows on the host, or a tensor.
template <typename T>
struct Argument {
  const T* host = nullptr;
  const Tensor* tensor = nullptr;
  std::uint64_t origin = 0;  // the argument's row with which the tensor begins

  bool given() const { return host || tensor; }
  Place from(std::uint64_t begin) const { return {tensor, begin - origin}; }
};

// Where an operation puts a result: dense rows on the host, or a tensor of the result's shape.
template <typename T>
struct Result {
  T* host = nullptr;
  const Tensor* tensor = nullptr;

  bool wanted() const { return host || tensor; }
  Place from(std::uint64_t begin) const { return {tensor, begin}; }
};

}  // namespace ebmvk
