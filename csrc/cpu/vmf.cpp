#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/vmf.cpp"
#include "cpu/simd.h"
//
#include <cmath>

#include "cpu/philox-inl.h"
#include "cpu/scratch.h"
#include "cpu/vector-inl.h"
#include "cpu/vmf.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

// The stream of ebmvk/engine/philox.py: STREAM_VMF_TANGENT.
constexpr uint32_t kTangent = 0xffffffffu;

void VmfRow(size_t d, const float* mu, double deficit, uint64_t seed, uint32_t row, float* noise, float* out) {
  FillNormals(seed, 0, row, kTangent, d, noise);
  Combine(1, noise, -Dot(mu, noise, d), mu, d, noise);
  const double across = std::sqrt(deficit * (2 - deficit)) / std::sqrt(static_cast<double>(Dot(noise, noise, d)));
  Combine(static_cast<float>(1 - deficit), mu, static_cast<float>(across), noise, d, out);
  Combine(1 / std::sqrt(Dot(out, out, d)), out, 0, out, d, out);
}

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include <vector>

#include "cpu/thread_pool.h"

namespace ebmvk {
namespace {
HWY_EXPORT(VmfRow);
}

void VmfPlace(size_t rows, size_t d, const float* mu, const double* deficit, uint64_t seed, uint32_t first_row,
              float* out) {
  ThreadPool& pool = SharedPool();
  std::vector<AlignedFloats> noise;
  for (size_t thread = 0; thread < pool.threads(); ++thread) noise.push_back(AllocateFloats(d + kNoisePad));
  pool.Run(rows, [&](size_t row, size_t thread) {
    HWY_DYNAMIC_DISPATCH(VmfRow)
    (d, mu + row * d, deficit[row], seed, first_row + static_cast<uint32_t>(row), noise[thread].get(), out + row * d);
  });
}

}  // namespace ebmvk
#endif
