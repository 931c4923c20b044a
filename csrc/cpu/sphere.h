// Operations on rows of the sphere (model section 1), by name. Arrays are (rows, d), row-major; the
// result may not overlap an argument.
#pragma once

#include <cstddef>
#include <vector>

namespace ebmvk {

struct RowOperation {
  const char* name;
  size_t arguments;
  bool scalar;  // one number per row instead of a row
  void (*run)(size_t rows, size_t d, const float* const* in, float* out);
};

const std::vector<RowOperation>& RowOperations();

}  // namespace ebmvk
