// How fast each kernel runs here, learned from its runs, and so how much work fits into a slice.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace ebmvk {

class Pace {
 public:
  // `assumed`: FLOP/s before anything is measured. `slice_seconds`: the time that a slice may take.
  Pace(double assumed, double slice_seconds) : assumed_(assumed), slice_seconds_(slice_seconds) {}

  // The number of units of work that fit into one slice; at least 1.
  std::uint64_t units(const std::string& kernel, double flops_per_unit) const;
  // FLOP/s, as far as known.
  double speed(const std::string& kernel) const;
  bool measured(const std::string& kernel) const { return speed_.count(kernel) > 0; }
  // A run did `flops` in `seconds`. `first`: it was the program's first run, which may include
  // compilation and page faults and so says nothing about speed.
  void learn(const std::string& kernel, double flops, double seconds, bool first);

  // For tests: a clock that adds `seconds` to every run from now on.
  void throttle(double seconds) { throttle_ = seconds; }

 private:
  double assumed_, slice_seconds_;
  double throttle_ = 0;
  std::map<std::string, double> speed_;  // FLOP/s
};

}  // namespace ebmvk
