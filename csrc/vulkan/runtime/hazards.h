// Which commands need a barrier before them, by the byte ranges that they read and write.
#pragma once

#include "vulkan/runtime/kernel_table.h"

#include <cstdint>
#include <map>
#include <vector>

namespace ebmvk {

// The bytes from `begin` up to `end` - 1 of a buffer, and what a command does with them. `buffer` is
// a number that no other buffer has.
struct Touch {
  std::uint64_t buffer, begin, end;
  Access access;
};

// What was touched since the last barrier.
class Hazards {
 public:
  // True if a command that touches these bytes now must wait: it writes bytes that were touched, or
  // reads bytes that were written.
  bool conflicts(const Touch& touch) const;
  void note(const Touch& touch);
  void clear() { touched_.clear(); }

 private:
  std::map<std::uint64_t, std::vector<Touch>> touched_;  // by buffer
};

// For each command, true if it needs a barrier before it. A command is given by all that it touches.
// A barrier covers everything before it.
std::vector<bool> barriers_between(const std::vector<std::vector<Touch>>& commands);

}  // namespace ebmvk
