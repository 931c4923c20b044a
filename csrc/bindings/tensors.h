// Tensors in Python, and the energy without the score.
#pragma once

#include "bindings/gil.h"
#include "bindings/operand.h"
#include "vulkan_bindings.h"

#include <pybind11/stl.h>

#include <memory>
#include <utility>
#include <vector>

namespace ebmvk {

// energy_score without the score.
inline py::tuple energy(Engine& engine, const py::object& x, const Points& points, const py::object& ids,
                        const py::object& logw, const py::object& kappa, const py::object& log_background) {
  const auto in = read_energy_score(engine, x, points, ids, logw, kappa, log_background);
  const bool on_device = any_tensor({x, ids, logw, kappa, log_background});
  const auto value = make_result<float>(engine, on_device, {in.rows});
  const auto responsibilities = make_result<float>(engine, on_device, {in.rows, in.k});
  const auto background = make_result<float>(engine, on_device, {in.rows});
  {
    const ReleaseGil release;
    engine.energy_score(points, in, {value.to, {}, responsibilities.to, background.to});
  }
  return py::make_tuple(value.value, responsibilities.value, background.value);
}

inline std::shared_ptr<Tensor> make_tensor(Engine& engine, const py::object& array) {
  const bool index = py::isinstance<Ids>(array);
  const auto any = array.cast<py::array>();
  if (!index && !py::isinstance<Floats>(array)) throw std::invalid_argument("not a float32 or int64 array in C order");
  if (any.ndim() < 1 || any.ndim() > 2 || any.shape(any.ndim() - 1) < (any.ndim() == 2))
    throw std::invalid_argument("not (rows,) or (rows, width)");
  const bool vector = any.ndim() == 1;
  const auto width = vector ? 1 : count(any.shape(1), "a row's width");
  const Tensor::Shape layout{count(any.shape(0), "the number of rows"), width,
                             vector || index ? width : 4 * quads_of(width), vector,
                             index ? Element::index : Element::float32};
  std::uint64_t below = 0;
  if (index) {
    const auto* ids = static_cast<const std::int64_t*>(any.data());
    std::int64_t low = 0, high = -1;
    for (py::ssize_t i = 0; i < any.size(); ++i) {
      low = std::min(low, ids[i]);
      high = std::max(high, ids[i]);
    }
    if (low < 0 || high >= std::int64_t{1} << 32) throw std::invalid_argument("an index is outside [0, 2^32)");
    below = static_cast<std::uint64_t>(high + 1);
  }
  const auto* rows = any.data();
  const ReleaseGil release;
  const auto tensor = engine.tensor(layout);
  tensor->set_below(below);
  engine.upload(*tensor, rows);
  return tensor;
}

inline py::list read_tensors(Engine& engine, const std::vector<std::shared_ptr<Tensor>>& tensors) {
  py::list arrays;
  std::vector<std::pair<const Tensor*, void*>> reads;
  for (const auto& tensor : tensors) {
    if (&tensor->device() != &engine.device()) throw std::invalid_argument("the tensor is on another device");
    std::vector<py::ssize_t> shape{static_cast<py::ssize_t>(tensor->rows())};
    if (!tensor->shape().vector) shape.push_back(tensor->width());
    const auto read = [&](auto array) {
      reads.emplace_back(tensor.get(), array.mutable_data());
      arrays.append(array);
    };
    if (tensor->shape().element == Element::index)
      read(Ids(shape));
    else
      read(Floats(shape));
  }
  const ReleaseGil release;
  engine.download(reads);
  return arrays;
}

// Registers Tensor, and more methods of Engine.
inline void register_tensors(py::module_& module, py::class_<Engine, std::shared_ptr<Engine>>& engine) {
  py::class_<Tensor, std::shared_ptr<Tensor>>(module, "Tensor")
      .def_property_readonly("shape",
                             [](const Tensor& tensor) {
                               if (tensor.shape().vector) return py::tuple(py::make_tuple(tensor.rows()));
                               return py::tuple(py::make_tuple(tensor.rows(), tensor.width()));
                             })
      .def_property_readonly("index", [](const Tensor& tensor) { return tensor.shape().element == Element::index; })
      .def_property_readonly("below", &Tensor::below)
      .def_property_readonly("nbytes", [](const Tensor& tensor) { return tensor.memory().bytes(); });
  engine.def("tensor", &make_tensor)
      .def("read", &read_tensors)
      .def_property_readonly("idle", [](Engine& self) { return self.pool().idle(); })
      .def("energy", &energy);
}

}  // namespace ebmvk
