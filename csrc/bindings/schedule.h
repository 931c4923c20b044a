// Schedules in Python, for both extensions: four tables (1 or B, L), and the steps of each level.
#pragma once

#include "bindings/shape.h"
#include "schedule.h"

#include <limits>
#include <numeric>
#include <vector>

namespace ebmvk {

// The tables must outlive the result. Throws invalid_argument.
inline Schedule read_schedule(const Floats& kappa_scale, const Floats& logw_shift, const Floats& step_size,
                              const Floats& gamma, const std::vector<std::uint32_t>& steps, py::ssize_t chains) {
  py::ssize_t rows = kAny, levels = static_cast<py::ssize_t>(steps.size());
  for (const auto* table : {&kappa_scale, &logw_shift, &step_size, &gamma})
    fit("schedule", table->shape(), table->ndim(), {&rows, &levels});
  constexpr auto most = std::numeric_limits<std::int32_t>::max();
  if (levels < 1 || levels > most || (rows != 1 && rows != chains))
    throw std::invalid_argument("schedule is not (1 or B, L)");
  if (std::accumulate(steps.begin(), steps.end(), std::uint64_t{0}) > most)
    throw std::invalid_argument("the schedule has more than 2^31 - 1 steps");
  return {static_cast<std::uint32_t>(rows),
          static_cast<std::uint32_t>(levels),
          kappa_scale.data(),
          logw_shift.data(),
          step_size.data(),
          gamma.data(),
          steps};
}

}  // namespace ebmvk
