#include "vulkan/runtime/hazards.h"

#include <algorithm>

namespace ebmvk {

bool Hazards::conflicts(const Touch& touch) const {
  const auto found = touched_.find(touch.buffer);
  if (found == touched_.end()) return false;
  return std::any_of(found->second.begin(), found->second.end(), [&](const Touch& earlier) {
    const bool writes = touch.access != Access::read || earlier.access != Access::read;
    return writes && earlier.begin < touch.end && touch.begin < earlier.end;
  });
}

void Hazards::note(const Touch& touch) { touched_[touch.buffer].push_back(touch); }

std::vector<bool> barriers_between(const std::vector<std::vector<Touch>>& commands) {
  std::vector<bool> needed;
  Hazards hazards;
  for (const auto& command : commands) {
    needed.push_back(
        std::any_of(command.begin(), command.end(), [&](const Touch& touch) { return hazards.conflicts(touch); }));
    if (needed.back()) hazards.clear();
    for (const auto& touch : command) hazards.note(touch);
  }
  return needed;
}

}  // namespace ebmvk
