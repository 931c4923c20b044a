#include "vulkan/ops/sums.h"

#include <algorithm>
#include <utility>

namespace ebmvk {
namespace {

constexpr std::uint64_t kSumBytes = std::uint64_t{64} << 20;  // most bytes of sums that go to the host at once
constexpr std::uint64_t kStride = 256;  // of windows: the largest alignment of a binding that Vulkan allows
constexpr std::uint32_t kAll = 0xffffffffu;
// The number of segments of a workgroup on a processor, where a workgroup without work costs as much
// as some entries. A GPU gets a workgroup for each segment.
constexpr std::uint32_t kSegmentsEach = 64;

std::uint64_t divide_up(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

// Parts of a tensor begin where every device can bind them.
std::uint64_t segments_at_once(const Device& device, const Sums::Shape& shape, bool tensor) {
  const auto fit = std::min(device.storage_range(), tensor ? ~std::uint64_t{0} : kSumBytes) / (4 * shape.pitch);
  const auto part = std::max<std::uint64_t>(std::min(fit, shape.segments), 1);
  const std::uint64_t step = shape.pitch % 4 == 0 ? 16 : 64;
  return tensor && part < shape.segments ? std::max(part / step * step, step) : part;
}

}  // namespace

Windows::Windows(Engine& engine, std::size_t count)
    : count_(count), words_(engine.device(), Buffer::Kind::upload, kStride * count) {}

void Windows::set(std::size_t number, const Window& window) {
  *reinterpret_cast<Window*>(words_.as<char>() + kStride * number) = window;
}

View Windows::operator[](std::size_t number) const { return {words_, kStride * number, sizeof(Window)}; }

std::uint64_t entries_per_window(Engine& engine, std::uint32_t quads) {
  const auto group = engine.row_group(quads);
  // An invocation passes through the entries of its segments once for each of its quads, after it has
  // searched for the first and the last of each segment.
  const auto rounds = engine.device().capabilities().loop_rounds - 128 * kSegmentsEach;
  return std::max(rounds / ((quads + group - 1) / group + 1), 1u);
}

void record_sums(Engine& engine, Program& program, const Segments& segments, const View& entries, const View& window,
                 const WeightedRows& rows, const View& sums, std::uint64_t room) {
  const kernels::SegmentSum push{rows.quads, rows.per_row, static_cast<std::uint32_t>(room)};
  const auto& device = engine.device().capabilities();
  const auto grid = grid_of(device, device.type == "cpu" ? divide_up(room, kSegmentsEach) : room);
  program.kernel(engine.kernels().get(push.name, engine.row_group(rows.quads), {}),
                 {segments.found(), window, segments.starts(), entries, rows.weights, rows.a, rows.b, sums}, push,
                 grid.x, grid.y);
}

void record_totals(Engine& engine, Program& program, const Segments& segments, const View& entries, const View& window,
                   const View& weights, const View& totals, std::uint64_t room) {
  const auto& device = engine.device().capabilities();
  constexpr std::uint32_t group = 64;
  const auto grid = grid_of(device, divide_up(room, group));
  program.kernel(engine.kernels().get(kernels::SegmentTotal::name, group, {}),
                 {segments.found(), window, segments.starts(), entries, weights, totals},
                 kernels::SegmentTotal{static_cast<std::uint32_t>(room)}, grid.x, grid.y);
}

bool Sums::at_once(const Device& device, const Shape& shape, bool in_tensor) {
  return in_tensor || segments_at_once(device, shape, false) == shape.segments;
}

Sums::Sums(Engine& engine, const Shape& shape, const Tensor* tensor, Record record)
    : engine_(engine),
      shape_(shape),
      record_(std::move(record)),
      part_(segments_at_once(engine.device(), shape, tensor != nullptr)),
      windows_each_(std::max<std::uint64_t>(divide_up(shape.entries, shape.at_once), 1)),
      windows_(engine, windows_each_ * (tensor ? divide_up(shape.segments, part_) : 1) + 1) {
  if (tensor)
    tensor_ = tensor->memory();
  else
    table_ = Table(engine.device(), part_, shape.width, shape.pitch, Buffer::Kind::readback);
}

View Sums::place(std::uint64_t segment) const {
  if (!tensor_) return table_.on_device();
  const auto row = std::uint64_t{4} * shape_.pitch;
  return {*tensor_->buffer, segment * row, std::min(part_, shape_.segments - segment) * row};
}

void Sums::record(Program& program) {
  std::size_t number = 0;
  for (std::uint64_t segment = 0; segment < shape_.segments; segment += part_)
    for (std::uint64_t i = 0; i < windows_each_; ++i, ++number) {
      const auto end = i + 1 == windows_each_ ? kAll : static_cast<std::uint32_t>((i + 1) * shape_.at_once);
      windows_.set(number, {static_cast<std::uint32_t>(i * shape_.at_once), end, static_cast<std::uint32_t>(segment),
                            i == 0 ? 1u : 0u});
      record_(program, windows_[number], place(segment), std::min(part_, shape_.segments - segment));
    }
  if (!tensor_) program.copy(table_.on_device(), table_.on_host());
}

void Sums::read(const HostRows& out, std::uint64_t segments) const {
  if (tensor_) return;
  const auto* sums = table_.on_host().as<float>();
  for (std::size_t i = 0; i < segments; ++i)
    std::copy_n(sums + i * shape_.pitch, shape_.width, out.rows + out.to[i] * out.stride);
}

void Sums::fill(const HostRows& out, std::uint64_t segments) {
  auto* sums = table_.on_host().as<float>();
  for (std::size_t i = 0; i < segments; ++i, sums += shape_.pitch) {
    std::copy_n(out.rows + out.to[i] * out.stride, shape_.width, sums);
    std::fill(sums + shape_.width, sums + shape_.pitch, 0.0f);
  }
}

void Sums::record_slices() {
  // On the host all segments take turns in one table.
  for (std::uint64_t segment = 0; segment < (tensor_ ? shape_.segments : 1); segment += part_) {
    auto& program = *slices_.emplace_back(std::make_unique<Program>(engine_.device()));
    if (!tensor_) program.copy(table_.on_host(), table_.on_device());
    record_(program, windows_[windows_.count() - 1], place(segment), std::min(part_, shape_.segments - segment));
    if (!tensor_) program.copy(table_.on_device(), table_.on_host());
    program.finish();
  }
}

void Sums::add(Engine::Call& call, std::uint64_t entries, std::uint64_t slice, const char* speed,
               double flops_per_entry, const HostRows& out, std::uint64_t segments) {
  const auto window = std::min(slice, shape_.at_once);
  for (std::uint64_t segment = 0; segment < segments; segment += part_) {
    const auto now = std::min(part_, segments - segment);
    const HostRows rows{out.rows, out.stride, out.to + segment};
    if (!tensor_) fill(rows, now);
    for (std::uint64_t first = 0; first < entries; first += window) {
      const auto end = std::min(first + window, entries);
      windows_.set(windows_.count() - 1, {static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(end),
                                          static_cast<std::uint32_t>(segment), tensor_ && first == 0 ? 1u : 0u});
      call.run(*slices_[tensor_ ? segment / part_ : 0], speed, flops_per_entry * static_cast<double>(end - first));
    }
    read(rows, now);
  }
}

}  // namespace ebmvk
