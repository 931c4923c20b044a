// Highway, or plain loops with the names of Highway that this project uses.
//
// Kernels are written once, with the names of hwy::HWY_NAMESPACE. If Highway is built in,
// foreach_target.h compiles them for each instruction set, and the best one is chosen at run time.
// Without Highway, and for its scalar target, the same names come from namespace plain: loops over
// four lanes that any compiler turns into baseline SIMD.
//
// Include in this order: define HWY_TARGET_INCLUDE, then this file, then the *-inl.h files.
#if EBMVK_HAVE_HIGHWAY
// Kernels keep vectors in arrays, which is impossible for sizeless vectors (SVE, RVV); those
// processors use NEON.
#ifndef HWY_DISABLED_TARGETS
// Newer versions of Highway have HWY_SSE2 (bit 14) instead of the scalar target, whose loops we
// test on every processor. Highway 1.0.3 has no name for that bit.
#define HWY_DISABLED_TARGETS (HWY_SVE | HWY_SVE2 | HWY_SVE_256 | HWY_SVE2_128 | HWY_RVV | (1LL << 14))
#endif
#ifdef HWY_TARGET_INCLUDE
#include <hwy/foreach_target.h>
#endif
//
#include <hwy/highway.h>
#endif

#ifndef EBMVK_SIMD_H
#define EBMVK_SIMD_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#if !EBMVK_HAVE_HIGHWAY
#define HWY_NAMESPACE N_PLAIN
#define HWY_ONCE 1
#define HWY_BEFORE_NAMESPACE() static_assert(true, "")
#define HWY_AFTER_NAMESPACE() static_assert(true, "")
#define HWY_EXPORT(function) static_assert(true, "")
#define HWY_DYNAMIC_DISPATCH(function) N_PLAIN::function
#endif

namespace ebmvk::plain {

constexpr size_t kBytes = 16;

template <class T>
struct Simd {};
template <class T>
struct Vec {
  static constexpr size_t kLanes = kBytes / sizeof(T);
  T lane[kLanes];
};
struct Mask {
  bool lane[4];
};

template <class T>
constexpr size_t MaxLanes(Simd<T>) {
  return kBytes / sizeof(T);
}

#define EBMVK_LANES for (size_t i = 0; i < Vec<T>::kLanes; ++i)

template <class T>
Vec<T> LoadU(Simd<T>, const T* from) {
  Vec<T> v;
  std::memcpy(v.lane, from, kBytes);
  return v;
}
template <class T>
Vec<T> Load(Simd<T> d, const T* from) {
  return LoadU(d, from);
}
template <class T>
void StoreU(Vec<T> v, Simd<T>, T* to) {
  std::memcpy(to, v.lane, kBytes);
}
template <class T>
void Store(Vec<T> v, Simd<T> d, T* to) {
  StoreU(v, d, to);
}
template <class T, class S>
Vec<T> Set(Simd<T>, S value) {
  Vec<T> v;
  EBMVK_LANES v.lane[i] = static_cast<T>(value);
  return v;
}
template <class T>
Vec<T> Zero(Simd<T> d) {
  return Set(d, 0);
}
template <class T, class S>
Vec<T> BitCast(Simd<T>, Vec<S> from) {
  Vec<T> v;
  std::memcpy(v.lane, from.lane, kBytes);
  return v;
}

#define EBMVK_BINARY(name, expression)                  \
  template <class T>                                    \
  Vec<T> name(Vec<T> a, Vec<T> b) {                     \
    Vec<T> v;                                           \
    EBMVK_LANES v.lane[i] = static_cast<T>(expression); \
    return v;                                           \
  }
EBMVK_BINARY(Add, a.lane[i] + b.lane[i])
EBMVK_BINARY(Sub, a.lane[i] - b.lane[i])
EBMVK_BINARY(Mul, a.lane[i] * b.lane[i])
EBMVK_BINARY(Max, a.lane[i] > b.lane[i] ? a.lane[i] : b.lane[i])
EBMVK_BINARY(And, a.lane[i] & b.lane[i])
EBMVK_BINARY(Xor, a.lane[i] ^ b.lane[i])
#undef EBMVK_BINARY

template <class T>
Vec<T> MulAdd(Vec<T> a, Vec<T> b, Vec<T> c) {
  return Add(Mul(a, b), c);
}
template <class T>
Vec<T> NegMulAdd(Vec<T> a, Vec<T> b, Vec<T> c) {
  return Sub(c, Mul(a, b));
}
template <class T>
Vec<T> Xor3(Vec<T> a, Vec<T> b, Vec<T> c) {
  return Xor(Xor(a, b), c);
}
inline Vec<float> Sqrt(Vec<float> a) {
  for (float& x : a.lane) x = std::sqrt(x);
  return a;
}
template <int kBits, class T>
Vec<T> ShiftLeft(Vec<T> a) {
  EBMVK_LANES a.lane[i] = static_cast<T>(a.lane[i] << kBits);
  return a;
}
template <int kBits, class T>
Vec<T> ShiftRight(Vec<T> a) {
  EBMVK_LANES a.lane[i] = static_cast<T>(a.lane[i] >> kBits);
  return a;
}
inline Vec<int32_t> NearestInt(Vec<float> a) {
  Vec<int32_t> v;
  for (size_t i = 0; i < 4; ++i) v.lane[i] = static_cast<int32_t>(std::lrint(a.lane[i]));
  return v;
}
inline Vec<float> ConvertTo(Simd<float>, Vec<int32_t> a) {
  Vec<float> v;
  for (size_t i = 0; i < 4; ++i) v.lane[i] = static_cast<float>(a.lane[i]);
  return v;
}
inline Vec<uint64_t> MulEven(Vec<uint32_t> a, Vec<uint32_t> b) {
  return {{uint64_t{a.lane[0]} * b.lane[0], uint64_t{a.lane[2]} * b.lane[2]}};
}
// Odd lanes of a, even lanes of b.
inline Vec<uint32_t> OddEven(Vec<uint32_t> a, Vec<uint32_t> b) {
  return {{b.lane[0], a.lane[1], b.lane[2], a.lane[3]}};
}
template <class T>
Vec<T> InterleaveLower(Simd<T>, Vec<T> a, Vec<T> b) {
  Vec<T> v;
  EBMVK_LANES v.lane[i] = i % 2 ? b.lane[i / 2] : a.lane[i / 2];
  return v;
}
template <class T>
Vec<T> InterleaveUpper(Simd<T>, Vec<T> a, Vec<T> b) {
  constexpr size_t half = Vec<T>::kLanes / 2;
  Vec<T> v;
  EBMVK_LANES v.lane[i] = i % 2 ? b.lane[half + i / 2] : a.lane[half + i / 2];
  return v;
}
#undef EBMVK_LANES

inline Mask Le(Vec<float> a, Vec<float> b) {
  Mask m;
  for (size_t i = 0; i < 4; ++i) m.lane[i] = a.lane[i] <= b.lane[i];
  return m;
}
inline Mask TestBit(Vec<uint32_t> a, Vec<uint32_t> bit) {
  Mask m;
  for (size_t i = 0; i < 4; ++i) m.lane[i] = (a.lane[i] & bit.lane[i]) != 0;
  return m;
}
inline Mask MaskFromVec(Vec<float> a) {
  Mask m;
  for (size_t i = 0; i < 4; ++i) m.lane[i] = std::signbit(a.lane[i]);
  return m;
}
inline bool AllTrue(Simd<float>, Mask m) { return m.lane[0] && m.lane[1] && m.lane[2] && m.lane[3]; }
inline Vec<float> IfThenElse(Mask m, Vec<float> yes, Vec<float> no) {
  for (size_t i = 0; i < 4; ++i) no.lane[i] = m.lane[i] ? yes.lane[i] : no.lane[i];
  return no;
}
inline float ReduceSum(Simd<float>, Vec<float> v) { return (v.lane[0] + v.lane[2]) + (v.lane[1] + v.lane[3]); }

}  // namespace ebmvk::plain
#endif  // EBMVK_SIMD_H

// Once per target: the names that kernels use.
#if defined(EBMVK_SIMD_TARGET) == defined(HWY_TARGET_TOGGLE)
#ifdef EBMVK_SIMD_TARGET
#undef EBMVK_SIMD_TARGET
#else
#define EBMVK_SIMD_TARGET
#endif

#undef EBMVK_PLAIN
#if !EBMVK_HAVE_HIGHWAY || HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_EMU128
#define EBMVK_PLAIN 1
#else
#define EBMVK_PLAIN 0
#endif

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {
#if EBMVK_PLAIN
namespace hn = plain;
using F32 = hn::Simd<float>;
using I32 = hn::Simd<int32_t>;
using U32 = hn::Simd<uint32_t>;
using U64 = hn::Simd<uint64_t>;
using VF = hn::Vec<float>;
using VU32 = hn::Vec<uint32_t>;
using VU64 = hn::Vec<uint64_t>;
#else
namespace hn = hwy::HWY_NAMESPACE;
using F32 = hn::ScalableTag<float>;
using I32 = hn::RebindToSigned<F32>;
using U32 = hn::RebindToUnsigned<F32>;
using U64 = hn::Repartition<uint64_t, F32>;
using VF = hn::Vec<F32>;
using VU32 = hn::Vec<U32>;
using VU64 = hn::Vec<U64>;
#endif
constexpr size_t kLanes = hn::MaxLanes(F32());

inline float Sum(VF v) {
#if EBMVK_PLAIN
  return hn::ReduceSum(F32(), v);
#else
  return hn::GetLane(hn::SumOfLanes(F32(), v));
#endif
}
}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // per target
