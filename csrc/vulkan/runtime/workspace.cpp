#include "vulkan/runtime/workspace.h"

#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <cstring>

namespace ebmvk {

namespace {
constexpr std::size_t kMostEntries = 24;
}

Table::Table(Device& device, std::uint64_t rows, std::uint32_t width, std::uint32_t pitch, Buffer::Kind host)
    : width_(width), pitch_(pitch) {
  const auto bytes = checked_product(checked_product(rows, pitch), 4);
  host_ = Buffer(device, host, bytes);
  device_ = Buffer(device, Buffer::Kind::device, bytes);
}

void Table::write(const void* from, std::uint64_t rows) {
  auto* to = host_.as<std::uint32_t>();
  const auto* source = static_cast<const std::uint32_t*>(from);
  if (width_ == pitch_) {
    std::memcpy(to, source, 4 * rows * width_);
    return;
  }
  for (std::uint64_t row = 0; row < rows; ++row) {
    std::memcpy(to + row * pitch_, source + row * width_, std::size_t{4} * width_);
    std::memset(to + row * pitch_ + width_, 0, std::size_t{4} * (pitch_ - width_));
  }
}

void Table::read(void* to, std::uint64_t rows) const {
  const auto* from = host_.as<std::uint32_t>();
  auto* target = static_cast<std::uint32_t*>(to);
  if (width_ == pitch_) {
    std::memcpy(target, from, 4 * rows * width_);
    return;
  }
  for (std::uint64_t row = 0; row < rows; ++row)
    std::memcpy(target + row * width_, from + row * pitch_, std::size_t{4} * width_);
}

std::uint32_t power_of_two(std::uint64_t n) {
  std::uint64_t power = 1;
  while (power < n) power <<= 1;
  if (power > (std::uint64_t{1} << 31)) throw Unsupported("a size of " + std::to_string(n));
  return static_cast<std::uint32_t>(power);
}

void WorkspaceCache::forget(std::uint64_t points) {
  for (auto entry = entries_.begin(); entry != entries_.end();)
    entry = entry->second.points == points ? entries_.erase(entry) : std::next(entry);
}

void WorkspaceCache::make_room() {
  const auto limit = device_.capabilities().memory_bytes / 4;
  const auto total = [&] {
    std::uint64_t sum = 0;
    for (const auto& [key, entry] : entries_) sum += entry.bytes;
    return sum;
  };
  while (!entries_.empty() && (entries_.size() >= kMostEntries || total() > limit))
    entries_.erase(std::min_element(entries_.begin(), entries_.end(),
                                    [](const auto& a, const auto& b) { return a.second.used < b.second.used; }));
}

void* WorkspaceCache::find(const std::string& key, std::uint64_t points,
                           const std::function<std::shared_ptr<void>()>& make) {
  auto known = entries_.find(key);
  if (known == entries_.end()) {
    make_room();
    Entry entry;
    entry.points = points;
    const auto before = device_.allocated();
    const auto attempt = [&] { return device_.attempt("preparing a kernel", make); };
    try {
      entry.workspace = attempt();
    } catch (const OutOfMemory&) {
      if (entries_.empty()) throw;
      clear();
      entry.workspace = attempt();
    }
    entry.bytes = device_.allocated() - std::min(before, device_.allocated());
    known = entries_.emplace(key, std::move(entry)).first;
  }
  known->second.used = ++clock_;
  return known->second.workspace.get();
}

}  // namespace ebmvk
