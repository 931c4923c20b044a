// Programs that a caller puts together from modules: kernels, copies, fills and transfers over ranges
// of device memory, recorded once and run many times.
#pragma once

#include "vulkan/ops/engine.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace ebmvk {

// One allocation in device memory, freed with the object.
class Memory {
 public:
  Memory(std::shared_ptr<Engine> engine, std::uint64_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::uint64_t bytes() const { return bytes_; }
  const Buffer& buffer() const { return buffer_; }
  const std::shared_ptr<Engine>& engine() const { return engine_; }

 private:
  std::shared_ptr<Engine> engine_;
  std::uint64_t bytes_;
  Buffer buffer_;
};

// A part of a memory.
struct Range {
  std::shared_ptr<Memory> memory;
  std::uint64_t offset, bytes;
};

// A kernel as a caller holds it. The engine keeps its pipeline.
struct Module {
  std::shared_ptr<Engine> engine;
  const Pipeline* pipeline;
};

// A kernel of the caller, or one of the table by its name.
Module make_module(std::shared_ptr<Engine> engine, const GivenModule& given);
Module make_module(std::shared_ptr<Engine> engine, const std::string& name, std::uint32_t group,
                   const std::vector<std::uint32_t>& constants);

// Commands are added in the order in which they take effect. Barriers between them come from the
// bytes that they touch. Every call checks its arguments: std::invalid_argument for a range outside
// its memory or a wrong number of bindings, Unsupported for what exceeds the device's limits.
class Recording {
 public:
  struct Ran {
    double seconds = 0;                   // from the first submission to the end of the last
    std::vector<double> segment_seconds;  // on the device; 0 if it has no clock
    std::uint64_t submissions = 0;
    Traffic traffic;
  };
  // Bytes on the host for a slot.
  struct Source {
    std::uint32_t slot;
    const void* from;
    std::uint64_t bytes;
  };
  struct Target {
    std::uint32_t slot;
    void* to;
    std::uint64_t bytes;
  };

  explicit Recording(std::shared_ptr<Engine> engine) : engine_(std::move(engine)) {}
  ~Recording();
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  // Ranges of one kernel may overlap only if it just reads them. An empty range is allowed; a
  // dispatch without workgroups is left out.
  void kernel(const Module& module, const std::vector<Range>& bindings, std::vector<std::uint32_t> push,
              const Groups& groups);
  void copy(const Range& from, const Range& to);
  void fill(const Range& where, std::uint32_t word);
  // Copies from the host, or to it, at this point of every run. Returns the number of the slot;
  // uploads and downloads are numbered together.
  std::uint32_t upload(const Range& to);
  std::uint32_t download(const Range& from);
  // Ends a segment that probably takes `seconds`. Runs correct this by what they measure.
  void cut(double seconds);

  // Makes descriptors, staging buffers and command buffers. Nothing can be added afterwards. After a
  // failure it can be tried again. seconds: what the commands since the last cut probably take.
  void finish(double seconds);
  // Runs everything with one wait. Needs a source for each upload; downloads without a target are
  // dropped.
  Ran run(const std::vector<Source>& sources, const std::vector<Target>& targets);

  // False if a run failed after a part of it may have taken effect.
  bool intact() const { return intact_; }
  bool finished() const { return static_cast<bool>(program_); }
  std::uint64_t staging_bytes() const { return up_bytes_ + down_bytes_; }
  const std::vector<double>& estimates() const { return estimates_; }  // seconds of each segment

 private:
  using Step = std::function<void(Program&)>;
  struct Slot {
    bool up;
    std::uint64_t offset, bytes;  // in the staging buffer
  };

  void require_open() const;
  void require_inside(const Range& range, const char* what) const;
  std::uint32_t add_slot(bool up, std::uint64_t bytes);
  void add(Step step);
  void build();
  const Slot& slot(std::uint32_t number, bool up, std::uint64_t bytes) const;
  void learn(const Ran& ran);

  std::shared_ptr<Engine> engine_;
  std::vector<Step> steps_;
  std::set<std::shared_ptr<Memory>> memories_;  // of all ranges
  std::vector<Slot> slots_;
  std::vector<double> estimates_;
  std::uint64_t up_bytes_ = 0, down_bytes_ = 0;
  bool cut_ = false;   // the next step begins a segment
  bool open_ = false;  // there are steps since the last cut
  bool first_ = true, intact_ = true;
  Buffer up_, down_;  // staging
  std::unique_ptr<Program> program_;
};

}  // namespace ebmvk
