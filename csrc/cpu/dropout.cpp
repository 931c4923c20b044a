#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/dropout.cpp"
#include "cpu/simd.h"
//
#include <algorithm>
#include <cstring>

#include "cpu/dropout.h"
#include "cpu/philox-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

constexpr uint32_t kDropoutStream = 0xfffffffdu;  // STREAM_DROPOUT of ebmvk/engine/philox.py

inline float Dropped(float x, float factor) { return x * factor; }

inline uint16_t Dropped(uint16_t x, float factor) {
  const uint32_t wide = uint32_t{x} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  value *= factor;
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

template <class T>
void DropoutPart(const Masks& masks, size_t n, const T* x, T* out) {
  const float scale = 256.0f / static_cast<float>(256 - masks.threshold);
  alignas(64) uint8_t bytes[kBytesPerDraw];
  uint64_t block = masks.first / kBytesPerCounter;
  size_t skip = masks.first % kBytesPerCounter;
  for (size_t done = 0; done < n; block += kBytesPerDraw / kBytesPerCounter, skip = 0) {
    FillBytes(masks.seed, masks.step, masks.place, static_cast<uint32_t>(block), kDropoutStream, bytes);
    const size_t some = std::min(n - done, kBytesPerDraw - skip);
    for (size_t i = 0; i < some; ++i) {
      out[done + i] = Dropped(x[done + i], bytes[skip + i] >= masks.threshold ? scale : 0.0f);
    }
    done += some;
  }
}

void DropoutFloats(const Masks& masks, size_t n, const float* x, float* out) { DropoutPart(masks, n, x, out); }
void DropoutHalves(const Masks& masks, size_t n, const uint16_t* x, uint16_t* out) { DropoutPart(masks, n, x, out); }

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "cpu/thread_pool.h"

namespace ebmvk {
namespace {
HWY_EXPORT(DropoutFloats);
HWY_EXPORT(DropoutHalves);

// Elements per task; enough to be worth waking a thread.
constexpr size_t kTask = 1 << 16;

template <class Part>
void InParts(const Masks& masks, size_t n, const Part& part) {
  SharedPool().Run((n + kTask - 1) / kTask, [&](size_t task, size_t) {
    Masks own = masks;
    own.first += task * kTask;
    part(own, std::min(kTask, n - task * kTask), task * kTask);
  });
}

}  // namespace

void Dropout(const Masks& masks, size_t n, const float* x, float* out) {
  InParts(masks, n, [&](const Masks& own, size_t size, size_t at) {
    HWY_DYNAMIC_DISPATCH(DropoutFloats)(own, size, x + at, out + at);
  });
}

void DropoutBfloat16(const Masks& masks, size_t n, const uint16_t* x, uint16_t* out) {
  InParts(masks, n, [&](const Masks& own, size_t size, size_t at) {
    HWY_DYNAMIC_DISPATCH(DropoutHalves)(own, size, x + at, out + at);
  });
}

}  // namespace ebmvk
#endif
