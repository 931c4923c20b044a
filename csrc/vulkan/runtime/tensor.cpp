#include "vulkan/runtime/tensor.h"

#include "vulkan/runtime/errors.h"
#include "vulkan/runtime/guard.h"

#include <new>
#include <utility>

namespace ebmvk {
namespace {

constexpr std::uint64_t kSmallest = 256;

}  // namespace

// Sizes grow in steps of a quarter, so at most a fifth of the memory is unused.
std::uint64_t TensorPool::size_class(std::uint64_t bytes) const {
  if (device_.options().guard) return bytes;  // exact, so that the guard bands lie at the tensor's ends
  std::uint64_t power = kSmallest;
  while (power < bytes / 2) power *= 2;
  const std::uint64_t step = power / 4;
  return bytes <= kSmallest ? kSmallest : (bytes + step - 1) / step * step;
}

Buffer TensorPool::take(std::uint64_t bytes) {
  const auto size = size_class(bytes < 16 ? 16 : (bytes + 15) / 16 * 16);
  Buffer memory;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (const auto found = idle_.find(size); found != idle_.end()) {
      memory = std::move(found->second);
      idle_.erase(found);
    }
  }
  if (memory) {
    if (device_.options().guard) poison(device_, memory.handle(), memory.bytes() + 2 * memory.offset());
    return memory;
  }
  if (idle() > device_.capabilities().memory_bytes / 8) clear();
  try {
    return Buffer(device_, Buffer::Kind::device, size);
  } catch (const OutOfMemory&) {
    if (idle() == 0) throw;
    clear();
    return Buffer(device_, Buffer::Kind::device, size);
  }
}

void TensorPool::give_back(Buffer&& memory) noexcept {
  const std::lock_guard<std::mutex> lock(mutex_);
  const auto bytes = memory.bytes();
  try {
    idle_.emplace(bytes, std::move(memory));
  } catch (const std::bad_alloc&) {  // then `memory` frees itself
  }
}

void TensorPool::clear() {
  const std::lock_guard<std::mutex> lock(mutex_);
  idle_.clear();
}

std::uint64_t TensorPool::idle() const {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::uint64_t sum = 0;
  for (const auto& [bytes, memory] : idle_) sum += bytes;
  return sum;
}

Tensor::Tensor(std::shared_ptr<void> keeper, Device& device, TensorPool& pool, const Shape& shape)
    : keeper_(std::move(keeper)),
      device_(device),
      pool_(pool),
      shape_(shape),
      memory_(pool.take(checked_product(checked_product(shape.rows, shape.pitch), 4))) {}

Tensor::~Tensor() {
  if (!device_.abandoned()) pool_.give_back(std::move(memory_));
}

std::string keys_of(const std::vector<Place>& arguments, const std::vector<Place>& results) {
  std::string keys;
  for (const auto* places : {&arguments, &results})
    for (const auto& place : *places) keys += place.key();
  // If all rows are on the host, the key is empty.
  return keys.find_first_not_of('/') == std::string::npos ? std::string() : keys;
}

std::string Place::key() const {
  if (!tensor) return "/";
  return "/" + std::to_string(tensor->memory().id()) + "@" + std::to_string(begin) + "x" +
         std::to_string(tensor->pitch());
}

}  // namespace ebmvk
