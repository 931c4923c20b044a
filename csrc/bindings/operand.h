// Arguments and results of operations in Python: NumPy arrays, or tensors of the engine.
#pragma once

#include "bindings/gil.h"
#include "vulkan/ops/engine.h"
#include "vulkan/runtime/errors.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <string>
#include <type_traits>
#include <vector>

namespace ebmvk {

namespace py = pybind11;

using Floats = py::array_t<float, py::array::c_style>;
using Ids = py::array_t<std::int64_t, py::array::c_style>;
using Words = py::array_t<std::uint32_t, py::array::c_style>;

inline std::uint32_t count(py::ssize_t n, const char* what) {
  if (n < 0 || n > std::numeric_limits<std::int32_t>::max())
    throw Unsupported(std::string(what) + " is " + std::to_string(n) + "; the limit is 2^31 - 1");
  return static_cast<std::uint32_t>(n);
}

inline void require(const py::array& array, const char* name, std::initializer_list<py::ssize_t> shape) {
  bool fits = array.ndim() == static_cast<py::ssize_t>(shape.size());
  for (std::size_t i = 0; fits && i < shape.size(); ++i)
    fits = array.shape(static_cast<py::ssize_t>(i)) == shape.begin()[i];
  if (!fits) throw std::invalid_argument(std::string(name) + " has a shape that does not fit the other arguments");
}

inline const Floats& matrix(const Floats& array, const char* name) {
  if (array.ndim() != 2 || array.shape(1) < 1) throw std::invalid_argument(std::string(name) + " is not (rows, d)");
  return array;
}

constexpr py::ssize_t kAny = -1;  // a size that the argument itself determines

// The shape of an argument, which is an array of T or a tensor of this engine. Throws
// invalid_argument if it is neither, or if its shape isn't `wanted`.
template <typename T>
std::vector<py::ssize_t> shape_of(const Engine& engine, const py::handle& value, const char* name,
                                  std::initializer_list<py::ssize_t> wanted) {
  using Array = py::array_t<T, py::array::c_style>;
  constexpr auto element = std::is_same_v<T, float> ? Element::float32 : Element::index;
  std::vector<py::ssize_t> shape;
  if (py::isinstance<Tensor>(value)) {
    const auto& tensor = value.cast<const Tensor&>();
    if (&tensor.device() != &engine.device()) throw std::invalid_argument(std::string(name) + " is on another device");
    if (tensor.shape().element != element) throw std::invalid_argument(std::string(name) + " has another dtype");
    shape.push_back(tensor.rows());
    if (!tensor.shape().vector) shape.push_back(tensor.width());
  } else if (py::isinstance<Array>(value)) {
    const auto array = value.cast<Array>();
    shape.assign(array.shape(), array.shape() + array.ndim());
  } else {
    throw std::invalid_argument(std::string(name) + " is neither an array of its dtype nor a tensor");
  }
  bool fits = shape.size() == wanted.size();
  for (std::size_t i = 0; fits && i < shape.size(); ++i)
    fits = wanted.begin()[i] == kAny || wanted.begin()[i] == shape[i];
  if (!fits) throw std::invalid_argument(std::string(name) + " has a shape that does not fit the other arguments");
  return shape;
}

// What the engine gets of a Python argument; `value` must outlive it.
template <typename T>
Argument<T> argument(const Engine& engine, const py::handle& value, const char* name,
                     std::initializer_list<py::ssize_t> wanted) {
  shape_of<T>(engine, value, name, wanted);
  if (py::isinstance<Tensor>(value)) return {nullptr, value.cast<const Tensor*>()};
  return {value.cast<py::array_t<T, py::array::c_style>>().data(), nullptr};
}

// Throws invalid_argument if an index isn't in [0, end).
inline void require_below(const Argument<std::int64_t>& ids, py::ssize_t size, const char* name, std::int64_t end) {
  bool inside = !ids.tensor || ids.tensor->below() <= static_cast<std::uint64_t>(end);
  for (py::ssize_t i = 0; inside && ids.host && i < size; ++i) inside = ids.host[i] >= 0 && ids.host[i] < end;
  if (!inside) throw std::invalid_argument(std::string(name) + " contains an index outside its range");
}

inline bool any_tensor(std::initializer_list<py::handle> values) {
  return std::any_of(values.begin(), values.end(), [](const auto& value) { return py::isinstance<Tensor>(value); });
}

// Where a result goes: a new array, or a new tensor if an argument is one. Rows of coordinates are
// padded to quads.
template <typename T>
struct Made {
  py::object value;
  Result<T> to;
};

template <typename T>
Made<T> make_result(Engine& engine, bool on_device, std::vector<py::ssize_t> shape, bool coordinates = false) {
  if (!on_device) {
    py::array_t<T, py::array::c_style> array(shape);
    return {array, {array.mutable_data(), nullptr}};
  }
  const bool vector = shape.size() == 1;
  const auto width = vector ? 1 : count(shape[1], "a row's width");
  const Tensor::Shape layout{count(shape[0], "B"), width, coordinates ? 4 * quads_of(width) : width, vector,
                             std::is_same_v<T, float> ? Element::float32 : Element::index};
  const auto tensor = [&] {
    const ReleaseGil release;
    return engine.tensor(layout);
  }();
  return {py::cast(tensor), {nullptr, tensor.get()}};
}

inline EnergyArguments energy_arguments(const Engine& engine, const Points& points, const py::object& x,
                                        const py::object& ids, const py::object& logw, const py::object& kappa,
                                        const py::object& background) {
  const auto rows = shape_of<float>(engine, x, "x", {kAny, static_cast<py::ssize_t>(points.d())})[0];
  const auto k = shape_of<std::int64_t>(engine, ids, "ids", {rows, kAny})[1];
  if (k < 1) throw std::invalid_argument("ids has no candidates");
  const EnergyArguments in{count(rows, "B"),
                           count(k, "K"),
                           points.d(),
                           argument<float>(engine, x, "x", {rows, kAny}),
                           argument<std::int64_t>(engine, ids, "ids", {rows, k}),
                           argument<float>(engine, logw, "logw", {rows, k}),
                           argument<float>(engine, kappa, "kappa", {rows, k}),
                           argument<float>(engine, background, "log_background", {rows})};
  require_below(in.ids, rows * k, "ids", points.n());
  return in;
}

}  // namespace ebmvk
