#include "vulkan/runtime/plan.h"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <utility>

namespace ebmvk {

void Plan::add(Program& program, std::uint32_t section, double seconds) {
  const bool known = std::any_of(entries_.begin(), entries_.end(), [&](const Entry& entry) {
    return entry.program == &program && entry.section == section;
  });
  if (known || section >= program.sections() || !program.parts_[section].commands)
    throw std::logic_error("a section that was not recorded, or is in the plan already");
  entries_.push_back({&program, section, seconds});
}

std::vector<std::vector<vk::CommandBuffer>> Plan::groups_of(const std::vector<Entry>& entries) const {
  std::vector<std::vector<vk::CommandBuffer>> groups(1);
  double seconds = 0;
  for (const auto& entry : entries) {
    if (seconds > 0 && entry.seconds > 0 && seconds + entry.seconds > device_.options().slice_seconds) {
      groups.emplace_back();
      seconds = 0;
    }
    groups.back().push_back(entry.program->parts_[entry.section].commands);
    seconds += entry.seconds;
  }
  return groups;
}

Plan::Ran Plan::run() {
  device_.require_alive();
  const auto entries = std::exchange(entries_, {});
  Ran ran;
  if (entries.empty()) return ran;
  for (const auto& entry : entries) entry.program->canary(entry.section) = 0;
  const auto groups = groups_of(entries);
  const auto start = std::chrono::steady_clock::now();
  device_.run(groups);
  const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
  ran.seconds = seconds.count();
  ran.submissions = groups.size();
  for (const auto& entry : entries) {
    if (entry.program->canary(entry.section) != kCanary)
      device_.lose("did not run what was submitted (the canary is dead)");
    ran.section_seconds.push_back(entry.program->seconds(entry.section));
    ran.traffic += entry.program->parts_[entry.section].traffic;
    ran.first = ran.first || !entry.program->ran_;
  }
  for (const auto& entry : entries) entry.program->ran_ = true;
  return ran;
}

}  // namespace ebmvk
