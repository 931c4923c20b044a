// Arguments and results of the CPU kernels in Python: NumPy arrays.
#pragma once

#include "bindings/gil.h"
#include "bindings/shape.h"

#include <cstddef>
#include <optional>
#include <vector>

namespace ebmvk {

// The values of an argument, which must outlive them. Throws invalid_argument if its shape isn't `sizes`.
template <typename T>
const T* argument(const Array<T>& array, const char* name, std::initializer_list<py::ssize_t*> sizes) {
  fit(name, array.shape(), array.ndim(), sizes);
  return array.data();
}

// The same; null for None.
template <typename T>
const T* optional_argument(const std::optional<Array<T>>& array, const char* name,
                           std::initializer_list<py::ssize_t*> sizes) {
  return array ? argument<T>(*array, name, sizes) : nullptr;
}

inline std::size_t count(py::ssize_t size, const char*) { return static_cast<std::size_t>(size); }

inline void require_below(const std::int64_t* ids, py::ssize_t size, const char* name, py::ssize_t end) {
  for (py::ssize_t i = 0; i < size; ++i)
    if (ids[i] < 0 || ids[i] >= end) throw std::out_of_range(name);
}

// A new array, and where a kernel writes its values.
template <typename T>
struct Made {
  Array<T> value;
  T* to;
};

template <typename T>
Made<T> make_result(const std::vector<std::size_t>& shape) {
  Array<T> array(shape);
  return {array, array.mutable_data()};
}

}  // namespace ebmvk
