#include "vulkan/ops/sums.h"

#include <algorithm>
#include <utility>

namespace ebmvk {
namespace {

constexpr std::uint64_t kSumBytes = std::uint64_t{64} << 20;  // most bytes of sums that go to the host at once
constexpr std::uint32_t kAll = 0xffffffffu;
// The number of segments of a workgroup on a processor, where a workgroup without work costs as much
// as some entries. A GPU gets a workgroup for each segment.
constexpr std::uint32_t kSegmentsEach = 64;

std::uint64_t divide_up(std::uint64_t a, std::uint64_t b) { return (a + b - 1) / b; }

std::uint64_t segments_at_once(const Device& device, const Sums::Shape& shape, bool stays) {
  if (stays) return rows_per_binding(device, shape.segments, shape.pitch);
  const auto fit = std::min(device.storage_range(), kSumBytes) / (4 * shape.pitch);
  return std::max<std::uint64_t>(std::min(fit, shape.segments), 1);
}

}  // namespace

std::uint64_t rows_per_binding(const Device& device, std::uint64_t rows, std::uint32_t pitch) {
  const auto fit = device.storage_range() / (std::uint64_t{4} * pitch);
  const auto part = std::max<std::uint64_t>(std::min(fit, rows), 1);
  const std::uint64_t step = pitch % 4 == 0 ? 16 : 64;
  return part < rows ? std::max(part / step * step, step) : part;
}

Windows::Windows(Engine& engine, std::size_t count)
    : count_(count), words_(engine.device(), Buffer::Kind::upload, kSlotBytes * count) {}

void Windows::set(std::size_t number, const Window& window) {
  *reinterpret_cast<Window*>(words_.as<char>() + kSlotBytes * number) = window;
}

View Windows::operator[](std::size_t number) const { return {words_, kSlotBytes * number, sizeof(Window)}; }

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
  constexpr auto group = kernels::SegmentTotal::group;
  const auto grid = grid_of(device, divide_up(room, group));
  program.kernel(engine.kernels().get(kernels::SegmentTotal::name, group, {}),
                 {segments.found(), window, segments.starts(), entries, weights, totals},
                 kernels::SegmentTotal{static_cast<std::uint32_t>(room)}, grid.x, grid.y);
}

bool Sums::at_once(const Device& device, const Shape& shape, bool stays) {
  return stays || segments_at_once(device, shape, false) == shape.segments;
}

Sums::Sums(Engine& engine, const Shape& shape, const Buffer* place, Record record)
    : engine_(engine),
      shape_(shape),
      record_(std::move(record)),
      part_(segments_at_once(engine.device(), shape, place != nullptr)),
      windows_each_(std::max<std::uint64_t>(divide_up(shape.entries, shape.at_once), 1)),
      windows_(engine, windows_each_ * (place ? divide_up(shape.segments, part_) : 1) + kSlots) {
  if (place)
    place_ = *place;
  else
    table_ = Table(engine.device(), part_, shape.width, shape.pitch, Buffer::Kind::readback);
}

View Sums::place(std::uint64_t segment) const {
  if (!place_) return table_.on_device();
  const auto row = std::uint64_t{4} * shape_.pitch;
  return {*place_->buffer, segment * row, std::min(part_, shape_.segments - segment) * row};
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
  if (!place_) program.copy(table_.on_device(), table_.on_host());
}

void Sums::record_slices() {
  // On the host all segments take turns in one table.
  for (std::uint64_t segment = 0; segment < (place_ ? shape_.segments : 1); segment += part_) {
    auto& program = *slices_.emplace_back(std::make_unique<Program>(engine_.device()));
    if (!place_) {
      program.copy(table_.on_host(), table_.on_device());
      program.cut();
    }
    for (std::uint32_t slot = 0; slot < kSlots; ++slot) {
      if (slot > 0) program.cut();
      record_(program, windows_[windows_.count() - kSlots + slot], place(segment),
              std::min(part_, shape_.segments - segment));
    }
    if (!place_) {
      program.cut();
      program.copy(table_.on_device(), table_.on_host());
    }
    program.finish();
  }
}

// Adds the windows of a part to the plan, from a slot on. Returns the slot after the last one.
std::uint32_t Sums::add_windows(Engine::Call& call, std::uint64_t segment, std::uint64_t entries, std::uint64_t slice,
                                const EntryCost& cost, bool fresh, std::uint32_t slot) {
  const auto window = std::min(slice, shape_.at_once);
  auto& program = *slices_[place_ ? segment / part_ : 0];
  for (std::uint64_t first = 0; first < entries; first += window, ++slot) {
    if (slot >= call.slots(cost.speed)) {
      call.run();
      slot = 0;
    }
    const auto end = std::min(first + window, entries);
    windows_.set(windows_.count() - kSlots + slot,
                 {static_cast<std::uint32_t>(first), static_cast<std::uint32_t>(end),
                  static_cast<std::uint32_t>(segment), fresh && first == 0 ? 1u : 0u});
    call.add(program, slot + (place_ ? 0 : 1), cost.speed, cost.flops_per_entry * static_cast<double>(end - first));
  }
  return slot;
}

void Sums::add(Engine::Call& call, std::uint64_t entries, std::uint64_t slice, const EntryCost& cost) {
  std::uint32_t slot = 0;
  for (std::uint64_t segment = 0; segment < shape_.segments; segment += part_)
    slot = add_windows(call, segment, entries, slice, cost, true, slot);
  if (!place_) call.add(*slices_[0], kSlots + 1);
}

void Sums::read(const HostRows& out, std::uint64_t segments) const {
  if (place_) return;
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

void Sums::add_in_turns(Engine::Call& call, std::uint64_t entries, std::uint64_t slice, const EntryCost& cost,
                        const HostRows& out, std::uint64_t segments) {
  for (std::uint64_t segment = 0; segment < segments; segment += part_) {
    const auto now = std::min(part_, segments - segment);
    const HostRows rows{out.rows, out.stride, out.to + segment};
    fill(rows, now);
    call.add(*slices_[0], 0);
    add_windows(call, segment, entries, slice, cost, false, 0);
    call.add(*slices_[0], kSlots + 1);
    call.run();
    read(rows, now);
  }
}

}  // namespace ebmvk
