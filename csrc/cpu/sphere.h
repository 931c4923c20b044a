// Geometry of the sphere on rows (model section 1). All arrays (rows, d), row-major; out may not overlap an input.
#pragma once

#include <cstddef>

namespace ebmvk {

struct Shape {
  size_t rows, d;
};

void Projx(Shape s, const float* x, float* out);
void Proju(Shape s, const float* x, const float* u, float* out);
void Expmap(Shape s, const float* x, const float* u, float* out);
void Logmap(Shape s, const float* x, const float* y, float* out);  // 0 at y = x and at y = -x
void Transp(Shape s, const float* x, const float* y, const float* u, float* out);
void Dist(Shape s, const float* x, const float* y, float* out);  // out (rows)

}  // namespace ebmvk
