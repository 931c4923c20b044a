// Shapes of arguments in Python, for both extensions.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <initializer_list>
#include <stdexcept>
#include <string>

namespace ebmvk {

namespace py = pybind11;

template <typename T>
using Array = py::array_t<T, py::array::c_style>;
using Floats = Array<float>;
using Ids = Array<std::int64_t>;

constexpr py::ssize_t kAny = -1;  // a size that an argument will determine

// Throws invalid_argument if an argument doesn't have these sizes. It determines those that are kAny.
inline void fit(const char* name, const py::ssize_t* shape, py::ssize_t dimensions,
                std::initializer_list<py::ssize_t*> sizes) {
  bool fits = dimensions == static_cast<py::ssize_t>(sizes.size());
  for (auto* size : sizes) {
    if (!fits) break;
    if (*size == kAny) *size = *shape;
    fits = *size == *shape++;
  }
  if (!fits) throw std::invalid_argument(std::string(name) + " has a shape that does not fit the other arguments");
}

inline void require_some(py::ssize_t size, const char* name) {
  if (size < 1) throw std::invalid_argument(std::string(name) + " is 0; it must be at least 1");
}

inline void require_between(py::ssize_t number, py::ssize_t low, py::ssize_t high, const char* name) {
  if (number < low || number > high)
    throw std::invalid_argument(std::string(name) + " is outside [" + std::to_string(low) + ", " +
                                std::to_string(high) + "]");
}

}  // namespace ebmvk
