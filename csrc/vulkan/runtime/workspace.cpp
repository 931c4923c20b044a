#include "vulkan/runtime/workspace.h"

#include "kernels.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <cstring>

namespace ebmvk {

namespace {
constexpr std::size_t kMostEntries = 64;
constexpr std::uint64_t kAlignment = 256;  // the largest alignment of a binding that a device may ask for
}  // namespace

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

Operand::Operand(Device& device, const Place& place, std::uint32_t rows, std::uint32_t width, std::uint32_t pitch,
                 Buffer::Kind host)
    : device_(&device), place_(place), rows_(rows), width_(width), pitch_(pitch) {
  if (!place.tensor) {
    table_ = Table(device, rows, width, pitch, host);
    return;
  }
  const auto start = std::uint64_t{4} * place.tensor->pitch() * place.begin;
  bound_ = place.tensor->pitch() == pitch && start % kAlignment == 0;
  if (!bound_) own_ = Buffer(device, Buffer::Kind::device, checked_product(checked_product(rows, pitch), 4));
}

void Operand::write(const Argument<std::int64_t>& argument, std::uint64_t begin, std::uint64_t rows) {
  if (place_.tensor) return;
  auto* to = table_.on_host().as<std::uint32_t>();
  const auto* from = argument.host + begin * width_;
  for (std::uint64_t i = 0; i < rows * width_; ++i) to[i] = static_cast<std::uint32_t>(from[i]);
}

void Operand::read(const Result<std::int64_t>& result, std::uint64_t begin, std::uint64_t rows) const {
  if (!place_.tensor) std::copy_n(table_.on_host().as<std::uint32_t>(), rows * width_, result.host + begin * width_);
}

View Operand::whole() const {
  const auto& tensor = *place_.tensor;
  const auto start = std::uint64_t{4} * tensor.pitch() * place_.begin / kAlignment * kAlignment;
  const auto end = std::uint64_t{4} * tensor.pitch() * (place_.begin + rows_);
  return {tensor.memory(), start, std::min(end, tensor.memory().bytes()) - start};
}

View Operand::on_device() const {
  if (!place_.tensor) return table_.on_device();
  return bound_ ? whole() : View(own_);
}

void Operand::load(KernelRegistry& kernels, Program& program, const View& params) const {
  if (!place_.tensor)
    program.copy(table_.on_host(), table_.on_device());
  else if (!bound_)
    copy_rows(kernels, program, params, false);
}

void Operand::store(KernelRegistry& kernels, Program& program, const View& params) const {
  if (!place_.tensor)
    program.copy(table_.on_device(), table_.on_host());
  else if (!bound_)
    copy_rows(kernels, program, params, true);
}

void Operand::copy_rows(KernelRegistry& kernels, Program& program, const View& params, bool to_tensor) const {
  const auto& tensor = *place_.tensor;
  const auto first = static_cast<std::uint32_t>(tensor.pitch() * place_.begin % (kAlignment / 4));
  const auto pitch = to_tensor ? tensor.pitch() : pitch_;
  constexpr auto group = kernels::CopyRows::group;
  const auto groups = (std::uint64_t{rows_} * pitch + group - 1) / group;
  const auto x = static_cast<std::uint32_t>(
      std::min<std::uint64_t>(std::max<std::uint64_t>(groups, 1), device_->capabilities().max_groups));
  const auto y = static_cast<std::uint32_t>((groups + x - 1) / x);
  const View own(own_), whole_view = whole();
  if (to_tensor)
    program.kernel(kernels.get(kernels::CopyRows::name, group, {}), {params, own, whole_view},
                   kernels::CopyRows{width_, 0, pitch_, first, tensor.pitch()}, x, y);
  else
    program.kernel(kernels.get(kernels::CopyRows::name, group, {}), {params, whole_view, own},
                   kernels::CopyRows{width_, first, tensor.pitch(), 0, pitch_}, x, y);
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
      if (entries_.empty() && pool_.idle() == 0) throw;
      clear();
      pool_.clear();
      entry.workspace = attempt();
    }
    entry.bytes = device_.allocated() - std::min(before, device_.allocated());
    known = entries_.emplace(key, std::move(entry)).first;
  }
  known->second.used = ++clock_;
  return known->second.workspace.get();
}

}  // namespace ebmvk
