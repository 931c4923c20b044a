// Lets tests in Python call the functions that plan barriers and arenas.
#pragma once

#include "vulkan/runtime/arena.h"
#include "vulkan/runtime/hazards.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <tuple>
#include <utility>
#include <vector>

namespace ebmvk {

inline void register_planning(pybind11::module_& module) {
  namespace py = pybind11;
  using Range = std::tuple<std::uint64_t, std::uint64_t, std::uint64_t, bool>;  // buffer, begin, end, writes
  module.def(
      "barriers_between",
      [](const std::vector<std::vector<Range>>& commands) {
        std::vector<std::vector<Touch>> touches(commands.size());
        for (std::size_t i = 0; i < commands.size(); ++i)
          for (const auto& [buffer, begin, end, writes] : commands[i])
            touches[i].push_back({buffer, begin, end, writes ? Access::update : Access::read});
        return barriers_between(touches);
      },
      py::arg("commands"));
  using Lasting = std::tuple<std::uint64_t, std::uint32_t, std::uint32_t>;  // bytes, first node, last node
  module.def(
      "arrange",
      [](const std::vector<Lasting>& tensors, std::uint64_t alignment) {
        std::vector<Lifetime> lifetimes;
        for (const auto& [bytes, first, last] : tensors) lifetimes.push_back({bytes, first, last});
        auto arena = arrange(lifetimes, alignment);
        return std::make_pair(std::move(arena.offsets), arena.bytes);
      },
      py::arg("tensors"), py::arg("alignment"));
}

}  // namespace ebmvk
