// Arguments and results of operations in Python: NumPy arrays, or tensors of the engine.
#pragma once

#include "bindings/gil.h"
#include "bindings/shape.h"
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

using Words = Array<std::uint32_t>;

inline std::uint32_t count(py::ssize_t n, const char* what) {
  if (n < 0 || n > std::numeric_limits<std::int32_t>::max())
    throw Unsupported(std::string(what) + " is " + std::to_string(n) + "; the limit is 2^31 - 1");
  return static_cast<std::uint32_t>(n);
}

inline void require(const py::array& array, const char* name, std::initializer_list<py::ssize_t> shape) {
  std::vector<py::ssize_t> sizes(shape);
  if (array.ndim() != static_cast<py::ssize_t>(shape.size()) || !std::equal(sizes.begin(), sizes.end(), array.shape()))
    throw std::invalid_argument(std::string(name) + " has a shape that does not fit the other arguments");
}

inline const Floats& matrix(const Floats& array, const char* name) {
  if (array.ndim() != 2 || array.shape(1) < 1) throw std::invalid_argument(std::string(name) + " is not (rows, d)");
  return array;
}

// An argument as the engine takes it. `value` is an array of T or a tensor of this engine, and must
// outlive the result. Throws invalid_argument if it is neither, or if its shape isn't `sizes`.
template <typename T>
Argument<T> argument(const Engine& engine, const py::handle& value, const char* name,
                     std::initializer_list<py::ssize_t*> sizes) {
  if (py::isinstance<Tensor>(value)) {
    const auto& tensor = value.cast<const Tensor&>();
    constexpr auto element = std::is_same_v<T, float> ? Element::float32 : Element::index;
    if (&tensor.device() != &engine.device()) throw std::invalid_argument(std::string(name) + " is on another device");
    if (tensor.shape().element != element) throw std::invalid_argument(std::string(name) + " has another dtype");
    const py::ssize_t shape[] = {tensor.rows(), tensor.width()};
    fit(name, shape, tensor.shape().vector ? 1 : 2, sizes);
    return {nullptr, &tensor};
  }
  if (!py::isinstance<Array<T>>(value))
    throw std::invalid_argument(std::string(name) + " is neither an array of its dtype nor a tensor");
  const auto array = value.cast<Array<T>>();
  fit(name, array.shape(), array.ndim(), sizes);
  return {array.data(), nullptr};
}

// The same; empty if the argument is None.
template <typename T>
Argument<T> optional_argument(const Engine& engine, const py::handle& value, const char* name,
                              std::initializer_list<py::ssize_t*> sizes) {
  return value.is_none() ? Argument<T>{} : argument<T>(engine, value, name, sizes);
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
// padded to quads. below: for indices, a number above all of them.
template <typename T>
struct Made {
  py::object value;
  Result<T> to;
};

template <typename T>
Made<T> make_result(Engine& engine, bool on_device, std::vector<py::ssize_t> shape, bool coordinates = false,
                    std::uint64_t below = 0) {
  if (!on_device) {
    Array<T> array(shape);
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
  if (below) tensor->set_below(below);
  return {py::cast(tensor), {nullptr, tensor.get()}};
}

}  // namespace ebmvk
