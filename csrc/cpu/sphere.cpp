#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/sphere.cpp"
#include "cpu/simd.h"
//
#include <algorithm>
#include <cmath>

#include "cpu/sphere.h"
#include "cpu/vector-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

float Length(const float* a, size_t d) { return std::sqrt(Dot(a, a, d)); }

void ProjxRow(size_t d, const float* x, float* out) {
  // Scale by the largest entry first, so that squares of tiny and huge rows don't under- or
  // overflow.
  float largest = 0;
  for (size_t i = 0; i < d; ++i) largest = std::max(largest, std::abs(x[i]));
  for (size_t i = 0; i < d; ++i) out[i] = x[i] / largest;
  Combine(1 / Length(out, d), out, 0, out, d, out);
}

void ProjuRow(size_t d, const float* x, const float* u, float* out) { Combine(1, u, -Dot(x, u, d), x, d, out); }

void ExpmapRow(size_t d, const float* x, const float* u, float* out) {
  const float norm = Length(u, d);
  const float slide = norm > 0 ? std::sin(norm) / norm : 1.0f;
  Combine(std::cos(norm), x, slide, u, d, out);
}

// 2 atan2(|x - y|, |x + y|): accurate near 0 and pi, where acos(x.y) is not.
float DistRow(size_t d, const float* x, const float* y, float* buffer) {
  Combine(1, x, -1, y, d, buffer);
  const float apart = Length(buffer, d);
  Combine(1, x, 1, y, d, buffer);
  return 2 * std::atan2(apart, Length(buffer, d));
}

void LogmapRow(size_t d, const float* x, const float* y, float* out) {
  const float distance = DistRow(d, x, y, out);
  // Subtract first: the difference is exact if x and y nearly coincide.
  Combine(1, y, -1, x, d, out);
  Combine(1, out, -Dot(x, out, d), x, d, out);
  const float norm = Length(out, d);
  Combine(norm > 0 ? distance / norm : 0.0f, out, 0, out, d, out);
}

void TranspRow(size_t d, const float* x, const float* y, const float* u, float* out) {
  // 1 + x.y = |x + y|^2 / 2, without the cancellation near y = -x.
  Combine(1, x, 1, y, d, out);
  Combine(1, u, -2 * Dot(y, u, d) / Dot(out, out, d), out, d, out);
}

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <vector>

#include "cpu/rows.h"

namespace ebmvk {
namespace {
HWY_EXPORT(ProjxRow);
HWY_EXPORT(ProjuRow);
HWY_EXPORT(ExpmapRow);
HWY_EXPORT(LogmapRow);
HWY_EXPORT(TranspRow);
HWY_EXPORT(DistRow);

constexpr size_t kTask = 1 << 15;  // floats per task

template <class Row>
void ForRows(size_t rows, size_t d, const Row& row) {
  ForEach(rows, std::max<size_t>(1, kTask / std::max<size_t>(1, d)), [&](size_t r) { row(r * d, r); });
}

void Projx(size_t rows, size_t d, const float* const* in, float* out) {
  ForRows(rows, d, [&](size_t at, size_t) { HWY_DYNAMIC_DISPATCH(ProjxRow)(d, in[0] + at, out + at); });
}

void Proju(size_t rows, size_t d, const float* const* in, float* out) {
  ForRows(rows, d, [&](size_t at, size_t) { HWY_DYNAMIC_DISPATCH(ProjuRow)(d, in[0] + at, in[1] + at, out + at); });
}

void Expmap(size_t rows, size_t d, const float* const* in, float* out) {
  ForRows(rows, d, [&](size_t at, size_t) { HWY_DYNAMIC_DISPATCH(ExpmapRow)(d, in[0] + at, in[1] + at, out + at); });
}

void Logmap(size_t rows, size_t d, const float* const* in, float* out) {
  ForRows(rows, d, [&](size_t at, size_t) { HWY_DYNAMIC_DISPATCH(LogmapRow)(d, in[0] + at, in[1] + at, out + at); });
}

void Transp(size_t rows, size_t d, const float* const* in, float* out) {
  ForRows(rows, d, [&](size_t at, size_t) {
    HWY_DYNAMIC_DISPATCH(TranspRow)(d, in[0] + at, in[1] + at, in[2] + at, out + at);
  });
}

void Dist(size_t rows, size_t d, const float* const* in, float* out) {
  ForRows(rows, d, [&](size_t at, size_t r) {
    thread_local std::vector<float> buffer;
    buffer.resize(d);
    out[r] = HWY_DYNAMIC_DISPATCH(DistRow)(d, in[0] + at, in[1] + at, buffer.data());
  });
}

}  // namespace

const std::vector<RowOperation>& RowOperations() {
  static const std::vector<RowOperation> operations = {
      {"projx", 1, false, Projx},    // |x| = 1
      {"proju", 2, false, Proju},    // u - (x.u) x
      {"expmap", 2, false, Expmap},  // cos|u| x + sinc|u| u
      {"logmap", 2, false, Logmap},  // 0 at y = x and at y = -x
      {"transp", 3, false, Transp},  // along the shortest geodesic
      {"dist", 2, true, Dist},       // in radians
  };
  return operations;
}

}  // namespace ebmvk
#endif
