// Kernels in Python, for tests and benchmarks: their modules, machine code, and the pace of slices.
#pragma once

#include "vulkan/ops/engine.h"
#include "vulkan/runtime/kernel_registry.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cstring>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace ebmvk {

namespace py = pybind11;

// The words of a SPIR-V module as bytes.
inline py::bytes as_bytes(const std::uint32_t* words, std::size_t bytes) {
  return py::bytes(reinterpret_cast<const char*>(words), bytes);
}

inline const KernelSource& find_kernel(const std::string& name, Variant variant, Storage storage) {
  for (const auto& source : kernel_table())
    if (name == source.name && variant == source.variant && storage == source.storage) return source;
  throw std::invalid_argument("unknown kernel: " + name);
}

inline py::bytes module_of(const std::string& name, Variant variant, Storage storage,
                           const std::optional<std::vector<std::uint32_t>>& values) {
  const auto& source = find_kernel(name, variant, storage);
  if (!values) return as_bytes(source.code, source.bytes);
  const auto code = specialise_kernel(source, *values);
  return as_bytes(code.data(), 4 * code.size());
}

using KernelName = std::tuple<std::string, Variant, Storage>;

inline std::vector<KernelName> names_of(const std::vector<KernelSource>& kernels) {
  std::vector<KernelName> names;
  for (const auto& kernel : kernels) names.emplace_back(kernel.name, kernel.variant, kernel.storage);
  return names;
}

inline MachineCode inspect_spirv(Engine& engine, const py::bytes& spirv, std::uint32_t bindings,
                                 std::uint32_t push_bytes, const std::vector<std::uint32_t>& constants,
                                 std::uint32_t subgroup_size) {
  const auto view = static_cast<std::string_view>(spirv);
  if (view.size() < 20 || view.size() % 4) throw std::invalid_argument("this is not a SPIR-V module");
  if (constants.empty()) throw std::invalid_argument("constant 0, the workgroup's size, is missing");
  std::vector<std::uint32_t> words(view.size() / 4);
  std::memcpy(words.data(), view.data(), view.size());
  const KernelSource source{"from a file",
                            Variant::portable,
                            Storage::float32,
                            words.data(),
                            view.size(),
                            std::vector<Access>(bindings, Access::update),
                            push_bytes,
                            0,
                            0,
                            false};
  const std::vector<std::uint32_t> others(constants.begin() + 1, constants.end());
  return engine.kernels().inspect(source, constants[0], others, subgroup_size);
}

inline void register_machine_code(py::module_& module) {
  py::class_<MachineCode>(module, "MachineCode")
      .def_readonly("subgroup_size", &MachineCode::subgroup_size)
      .def_readonly("statistics", &MachineCode::statistics)
      .def_readonly("texts", &MachineCode::texts);
  py::class_<PipelineKey>(module, "PipelineKey")
      .def(py::init([](const std::string& name, std::uint32_t group, const std::vector<std::uint32_t>& constants) {
             return PipelineKey{name, group, constants};
           }),
           py::arg("name"), py::arg("group"), py::arg("constants"))
      .def_readonly("name", &PipelineKey::name)
      .def_readonly("group", &PipelineKey::group)
      .def_readonly("constants", &PipelineKey::constants)
      .def_readonly("storage", &PipelineKey::storage)
      .def_readonly("resident", &PipelineKey::resident);
}

inline void register_pace(py::module_& module) {
  py::class_<Pace>(module, "Pace")
      .def(py::init<double, double>())
      .def("units", &Pace::units)
      .def("learn", &Pace::learn)
      .def("throttle", &Pace::throttle);
}

}  // namespace ebmvk
