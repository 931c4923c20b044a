#include "vulkan/ops/segments.h"

#include <algorithm>
#include <cstring>

namespace ebmvk {
namespace {

constexpr std::uint64_t kSumBytes = std::uint64_t{64} << 20;

std::uint32_t segments_at_once(Engine& engine, std::uint32_t width, std::uint64_t most) {
  const auto& device = engine.device();
  const auto row = std::uint64_t{16} * quads_of(width);
  const auto fit = std::min({std::uint64_t{device.capabilities().max_groups}, device.storage_range() / row,
                             std::max(kSumBytes / row, std::uint64_t{1})});
  return static_cast<std::uint32_t>(std::max<std::uint64_t>(std::min(fit, most), 1));
}

}  // namespace

SegmentSum::SegmentSum(Engine& engine, const View& weights, const View& a, const View& b, std::uint32_t width,
                       std::uint32_t per_row, std::uint64_t most)
    : width_(width),
      segments_(segments_at_once(engine, width, most)),
      push_{quads_of(width), per_row},
      params_(engine.device(), Buffer::Kind::upload, 16),
      starts_(engine.device(), 1, segments_ + 1, segments_ + 1, Buffer::Kind::upload),
      entries_(engine.device(), 1, static_cast<std::uint32_t>(most), static_cast<std::uint32_t>(most),
               Buffer::Kind::upload),
      sums_(engine.device(), segments_, width, 4 * push_.quads, Buffer::Kind::readback),
      program_(engine.device()) {
  for (const auto* table : {&starts_, &entries_, &sums_}) program_.copy(table->on_host(), table->on_device());
  const auto& pipeline = engine.kernels().get(push_.name, engine.row_group(push_.quads), {});
  program_.kernel(pipeline, {params_, starts_.on_device(), entries_.on_device(), weights, a, b, sums_.on_device()},
                  push_, segments_);
  program_.copy(sums_.on_device(), sums_.on_host());
  program_.finish();
}

// Writes segments of the entries from `begin` to at most `end`; returns where it stopped.
std::size_t SegmentSum::take(const std::vector<Keyed>& sorted, std::size_t begin, std::size_t end) {
  auto* starts = starts_.on_host().as<std::uint32_t>();
  auto* entries = entries_.on_host().as<std::uint32_t>();
  keys_.clear();
  std::size_t at = begin;
  for (; at < end; ++at) {
    const auto key = static_cast<std::uint32_t>(sorted[at] >> 32);
    if (keys_.empty() || keys_.back() != key) {
      if (keys_.size() == segments_) break;
      starts[keys_.size()] = static_cast<std::uint32_t>(at - begin);
      keys_.push_back(key);
    }
    entries[at - begin] = static_cast<std::uint32_t>(sorted[at]);
  }
  starts[keys_.size()] = static_cast<std::uint32_t>(at - begin);
  return at;
}

void SegmentSum::add(Engine& engine, Engine::Call& call, const std::vector<Keyed>& sorted, float* totals) {
  const std::size_t pitch = std::size_t{4} * push_.quads;
  const auto group = engine.row_group(push_.quads);
  // An invocation passes through all entries of a segment once for each of its quads.
  const std::uint64_t most = engine.device().capabilities().loop_rounds / ((push_.quads + group - 1) / group + 1);
  for (std::size_t begin = 0; begin < sorted.size();) {
    const auto slice = std::min(engine.units_per_slice(push_.name, push_.flops(1)), most);
    const auto end = take(sorted, begin, begin + std::min<std::uint64_t>(slice, sorted.size() - begin));
    auto* sums = sums_.on_host().as<float>();
    for (std::size_t i = 0; i < keys_.size(); ++i) {
      std::copy_n(totals + std::size_t{keys_[i]} * width_, width_, sums + i * pitch);
      std::fill(sums + i * pitch + width_, sums + (i + 1) * pitch, 0.0f);
    }
    *params_.as<std::uint32_t>() = static_cast<std::uint32_t>(keys_.size());
    call.run(program_, push_.name, push_.flops(static_cast<double>(end - begin)));
    for (std::size_t i = 0; i < keys_.size(); ++i)
      std::copy_n(sums + i * pitch, width_, totals + std::size_t{keys_[i]} * width_);
    begin = end;
  }
}

}  // namespace ebmvk
