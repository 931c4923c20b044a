#include "vulkan/runtime/pace.h"

#include <algorithm>

namespace ebmvk {
namespace {

// A run shows that a kernel is slow only if it takes at least this share of a slice. In a shorter
// one, the time to submit it and to wait for it counts for too much.
constexpr double kTelling = 1.0 / 16;

// A kernel counts as at most this many times slower than assumed, so that a device which was busy or
// asleep for a while doesn't end with slices of a single row.
constexpr double kSlowest = 16;

}  // namespace

double Pace::speed(const std::string& kernel) const {
  const auto known = speed_.find(kernel);
  return known != speed_.end() ? known->second : assumed_;
}

std::uint64_t Pace::units(const std::string& kernel, double flops_per_unit) const {
  return static_cast<std::uint64_t>(
      std::clamp(speed(kernel) * slice_seconds_ / std::max(flops_per_unit, 1.0), 1.0, 1e12));
}

void Pace::learn(const std::string& kernel, double flops, double seconds, bool first) {
  seconds += throttle_;
  if (first || flops <= 0 || seconds <= 0) return;
  const double speed = flops / seconds;
  auto& known = speed_.try_emplace(kernel, assumed_).first->second;
  // A run can't be faster than its kernel, so believe a higher speed at once, whatever the size of
  // the run, but a lower one only by half.
  if (speed > known)
    known = speed;
  else if (seconds >= kTelling * slice_seconds_)
    known = std::max(0.5 * (known + speed), assumed_ / kSlowest);
}

}  // namespace ebmvk
