// Sums over segments of sorted entries, always in the order of the entries, so that they have the
// same bits however the entries are divided into dispatches.
//
// A sum of n float32 terms in this order is off by at most (n - 1) 2^-24 / (1 - (n - 1) 2^-24) times
// the sum of their sizes (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 4.2);
// the products add 3 x 2^-24 of each term's size.
#pragma once

#include "vulkan/ops/segments.h"

#include <functional>
#include <memory>
#include <optional>
#include <vector>

namespace ebmvk {

// What a dispatch adds: the entries from `first` up to `end` - 1, to the sums of the segments from
// `segment` on. fresh: sums start from zero; otherwise they continue.
struct Window {
  std::uint32_t first, end, segment, fresh;
};

// Windows in a buffer that kernels read, far enough apart for any device.
class Windows {
 public:
  Windows(Engine& engine, std::size_t count);
  void set(std::size_t number, const Window& window);
  View operator[](std::size_t number) const;
  std::size_t count() const { return count_; }

 private:
  std::size_t count_;
  Buffer words_;
};

// The number of entries of a segment that one dispatch may add, given the device's limit on loop
// iterations.
std::uint64_t entries_per_window(Engine& engine, std::uint32_t quads);

// Entry e adds weights_e.x a_row + weights_e.y b_row with row = e / per_row.
struct WeightedRows {
  View weights, a, b;
  std::uint32_t quads, per_row;
};

// Record the sums (room, 4 quads) of weighted rows, or the totals (room,) of weights_e.x.
void record_sums(Engine& engine, Program& program, const Segments& segments, const View& entries, const View& window,
                 const WeightedRows& rows, const View& sums, std::uint64_t room);
void record_totals(Engine& engine, Program& program, const Segments& segments, const View& entries, const View& window,
                   const View& weights, const View& totals, std::uint64_t room);

// Where sums on the host go: the sum of segment s to row to_s of `rows`, which are `stride` floats apart.
struct HostRows {
  float* rows;
  std::size_t stride;
  const std::uint32_t* to;
};

// How many of `rows` rows, of `pitch` words each, one binding has. If there are more rows, each part
// begins at an offset that every device can bind.
std::uint64_t rows_per_binding(const Device& device, std::uint64_t rows, std::uint32_t pitch);

// What a kernel's work costs: the name of its speed for Engine::units_per_slice, and its FLOPs. If
// these are 0, its speed isn't learned.
struct EntryCost {
  const char* speed;
  double flops_per_entry;
};

// The sums of all segments, which stay in a buffer of the caller or go to the host.
class Sums {
 public:
  // Records the addition of a window to the sums of up to `room` segments.
  using Record = std::function<void(Program&, const View& window, const View& sums, std::uint64_t room)>;
  struct Shape {
    std::uint64_t entries, segments;  // at most
    std::uint32_t width, pitch;       // floats of a sum, and those that it takes on the device
    std::uint64_t at_once;            // the number of entries that one dispatch may add
  };

  // True if no sum has to wait for its place in the table that goes to the host.
  static bool at_once(const Device& device, const Shape& shape, bool stays);

  // `place` has space for all segments, or is null. It isn't used after programs are recorded.
  Sums(Engine& engine, const Shape& shape, const Buffer* place, Record record);

  // One of these two must be called: to record all sums in one program, from zero, or to record the
  // programs of `add` and `add_in_turns`.
  void record(Program& program);
  void record_slices();
  // Adds to a plan the sums of `entries` entries, at most `slice` of them per submission, from zero.
  // It needs all segments to be summed at once. Runs the plan if it has too many slices.
  void add(Engine::Call& call, std::uint64_t entries, std::uint64_t slice, const EntryCost& cost);
  // Copies the sums of `segments` segments to the host; nothing if they stay on the device.
  void read(const HostRows& out, std::uint64_t segments) const;
  // The same as `add` and `read`, but sums on the host continue, and the segments may take turns. Runs
  // the plan.
  void add_in_turns(Engine::Call& call, std::uint64_t entries, std::uint64_t slice, const EntryCost& cost,
                    const HostRows& out, std::uint64_t segments);

 private:
  View place(std::uint64_t segment) const;
  void fill(const HostRows& out, std::uint64_t segments);
  std::uint32_t add_windows(Engine::Call& call, std::uint64_t segment, std::uint64_t entries, std::uint64_t slice,
                            const EntryCost& cost, bool fresh, std::uint32_t slot);

  Engine& engine_;
  Shape shape_;
  std::optional<View> place_;  // only valid while programs are recorded
  Record record_;
  std::uint64_t part_;  // the number of segments that a dispatch sums
  std::uint64_t windows_each_;
  Windows windows_;  // those of `record`, followed by those of slices
  Table table_;
  // A program for each part of the place, with a section for each slot. Sums for the host need only
  // one program, which also uploads sums before these sections and reads them back afterwards.
  std::vector<std::unique_ptr<Program>> slices_;
};

}  // namespace ebmvk
