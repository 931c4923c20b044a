// Memory, modules and recordings in Python.
#pragma once

#include "bindings/gil.h"
#include "vulkan/ops/recording.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace ebmvk {

namespace py = pybind11;

using RangeTuple = std::tuple<std::shared_ptr<Memory>, std::uint64_t, std::uint64_t>;
using GroupsTuple = std::tuple<std::uint32_t, std::uint32_t, std::uint32_t>;

inline Range range_of(const RangeTuple& given) {
  const auto& [memory, offset, bytes] = given;
  if (!memory) throw std::invalid_argument("a range has no memory");
  return {memory, offset, bytes};
}

inline std::vector<std::uint32_t> words_of(const py::bytes& bytes, const char* what) {
  const auto view = static_cast<std::string_view>(bytes);
  if (view.size() % 4) throw std::invalid_argument(std::string(what) + " isn't whole words");
  std::vector<std::uint32_t> words(view.size() / 4);
  if (!words.empty()) std::memcpy(words.data(), view.data(), view.size());
  return words;
}

inline std::vector<Access> access_of(const std::string& letters) {
  std::vector<Access> access;
  for (const auto letter : letters) {
    if (letter != 'r' && letter != 'w' && letter != 'u')
      throw std::invalid_argument("the access of a module is '" + letters + "'; its letters are r, w and u");
    access.push_back(letter == 'r' ? Access::read : letter == 'w' ? Access::write : Access::update);
  }
  return access;
}

inline Module module_from_spirv(std::shared_ptr<Engine> engine, const py::bytes& spirv, const std::string& access,
                                std::uint32_t push_words, std::uint32_t group,
                                const std::vector<std::uint32_t>& constants, bool subgroup, const std::string& name) {
  GivenModule given;
  given.name = name;
  given.code = words_of(spirv, "a SPIR-V module");
  given.access = access_of(access);
  given.push_bytes = 4 * push_words;
  given.group = group;
  given.constants = constants;
  given.subgroup = subgroup;
  const ReleaseGil release;
  return make_module(std::move(engine), given);
}

inline std::string access_letters(const Module& module) {
  std::string letters;
  for (const auto access : module.pipeline->source->access)
    letters += access == Access::read ? 'r' : access == Access::write ? 'w' : 'u';
  return letters;
}

inline py::array dense(const py::handle& value) {
  const auto array = value.cast<py::array>();
  if (!(array.flags() & py::array::c_style)) throw std::invalid_argument("an array isn't contiguous");
  return array;
}

inline Recording::Ran run_recording(Recording& recording, const py::dict& up, const py::dict& down) {
  std::vector<Recording::Source> sources;
  std::vector<Recording::Target> targets;
  std::vector<py::array> held;  // keeps the arrays alive during the run
  for (const auto& [slot, value] : up) {
    held.push_back(dense(value));
    sources.push_back(
        {slot.cast<std::uint32_t>(), held.back().data(), static_cast<std::uint64_t>(held.back().nbytes())});
  }
  for (const auto& [slot, value] : down) {
    held.push_back(dense(value));
    targets.push_back(
        {slot.cast<std::uint32_t>(), held.back().mutable_data(), static_cast<std::uint64_t>(held.back().nbytes())});
  }
  const ReleaseGil release;
  return recording.run(sources, targets);
}

inline void register_recording(py::module_& module, py::class_<Engine, std::shared_ptr<Engine>>& engine) {
  py::class_<Memory, std::shared_ptr<Memory>>(module, "Memory")
      .def_property_readonly("nbytes", &Memory::bytes)
      .def_property_readonly("capacity", [](const Memory& memory) { return memory.buffer().bytes(); });
  py::class_<Module>(module, "Module")
      .def_property_readonly("name", [](const Module& self) { return std::string(self.pipeline->source->name); })
      .def_property_readonly("access", &access_letters)
      .def_property_readonly("push_words", [](const Module& self) { return self.pipeline->source->push_bytes / 4; })
      .def_property_readonly("group", [](const Module& self) { return self.pipeline->group; });
  py::class_<Recording::Ran>(module, "Ran")
      .def_readonly("seconds", &Recording::Ran::seconds)
      .def_readonly("segment_seconds", &Recording::Ran::segment_seconds)
      .def_readonly("submissions", &Recording::Ran::submissions)
      .def_property_readonly("dispatches", [](const Recording::Ran& ran) { return ran.traffic.dispatches; })
      .def_property_readonly("barriers", [](const Recording::Ran& ran) { return ran.traffic.barriers; })
      .def_property_readonly("bytes_up", [](const Recording::Ran& ran) { return ran.traffic.up; })
      .def_property_readonly("bytes_down", [](const Recording::Ran& ran) { return ran.traffic.down; });
  py::class_<Recording, std::shared_ptr<Recording>>(module, "Recording")
      .def("kernel",
           [](Recording& self, const Module& kernel, const std::vector<RangeTuple>& bindings, const py::bytes& push,
              const GroupsTuple& groups) {
             std::vector<Range> ranges;
             for (const auto& binding : bindings) ranges.push_back(range_of(binding));
             const auto& [x, y, z] = groups;
             self.kernel(kernel, ranges, words_of(push, "the push constants"), {x, y, z});
           })
      .def("copy", [](Recording& self, const RangeTuple& from,
                      const RangeTuple& to) { self.copy(range_of(from), range_of(to)); })
      .def("fill",
           [](Recording& self, const RangeTuple& where, std::uint32_t word) { self.fill(range_of(where), word); })
      .def("upload", [](Recording& self, const RangeTuple& to) { return self.upload(range_of(to)); })
      .def("download", [](Recording& self, const RangeTuple& from) { return self.download(range_of(from)); })
      .def("cut", &Recording::cut)
      .def("finish", &Recording::finish, py::call_guard<ReleaseGil>())
      .def("run", &run_recording)
      .def_property_readonly("intact", &Recording::intact)
      .def_property_readonly("staging_bytes", &Recording::staging_bytes)
      .def_property_readonly("estimates", &Recording::estimates);
  engine
      .def("memory",
           [](std::shared_ptr<Engine> self, std::uint64_t bytes) {
             const ReleaseGil release;
             return std::make_shared<Memory>(std::move(self), bytes);
           })
      .def("module", &module_from_spirv)
      .def("kernel",
           [](std::shared_ptr<Engine> self, const std::string& name, std::uint32_t group,
              const std::vector<std::uint32_t>& constants) {
             const ReleaseGil release;
             return make_module(std::move(self), name, group, constants);
           })
      .def("recording", [](std::shared_ptr<Engine> self) { return std::make_shared<Recording>(std::move(self)); })
      .def_property_readonly("storage_range", [](Engine& self) { return self.device().storage_range(); })
      .def("subgroups", [](Engine& self, std::uint32_t group) { return self.kernels().subgroups(group); });
}

}  // namespace ebmvk
