// Sections of programs that are submitted together, in slices of bounded time, with one wait for all.
#pragma once

#include "vulkan/runtime/program.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace ebmvk {

class Plan {
 public:
  struct Ran {
    double seconds = 0;                   // from the first submission to the end of the last
    std::vector<double> section_seconds;  // on the device, as added; 0 if it has no clock
    bool first = false;                   // a program ran for the first time, and so may have been compiled
    std::uint64_t submissions = 0;
    Traffic traffic;
  };

  explicit Plan(Device& device) : device_(device) {}

  // A section that follows those added before, and the seconds that it will probably take. A section
  // can be in a plan once. The program must be finished, and must live until the plan has run.
  void add(Program& program, std::uint32_t section, double seconds = 0);
  // The number of submissions that run() will make of what was added.
  std::size_t submissions() const { return entries_.empty() ? 0 : groups_of(entries_).size(); }
  // Submits what was added, waits for all of it, and checks that the device is alive and ran every
  // section. A submission has as many sections as fit into Options::slice_seconds, at least one.
  // Afterwards the plan is empty.
  Ran run();

  static constexpr std::uint32_t kCanary = 0x5eafbeefu;  // the word that a section writes last

 private:
  struct Entry {
    Program* program;
    std::uint32_t section;
    double seconds;
  };

  std::vector<std::vector<vk::CommandBuffer>> groups_of(const std::vector<Entry>& entries) const;

  Device& device_;
  std::vector<Entry> entries_;
};

}  // namespace ebmvk
