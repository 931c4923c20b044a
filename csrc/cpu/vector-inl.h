// Loops over the coordinates of a state. Padded loops take n, a multiple of kPad; the others take
// any d.
#if defined(EBMVK_CPU_VECTOR_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef EBMVK_CPU_VECTOR_INL_H
#undef EBMVK_CPU_VECTOR_INL_H
#else
#define EBMVK_CPU_VECTOR_INL_H
#endif

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

// Rows are padded to a multiple of this: two vectors of the widest kind (512 bits).
constexpr size_t kPad = 32;
static_assert(kPad % (2 * kLanes) == 0, "padded loops take two vectors at a time");

// a.b for any d; the rest after the last whole vector is added in order.
inline float Dot(const float* a, const float* b, size_t d) {
  VF sum0 = hn::Zero(F32()), sum1 = hn::Zero(F32());
  size_t i = 0;
  for (; i + 2 * kLanes <= d; i += 2 * kLanes) {
    sum0 = hn::MulAdd(hn::LoadU(F32(), a + i), hn::LoadU(F32(), b + i), sum0);
    sum1 = hn::MulAdd(hn::LoadU(F32(), a + i + kLanes), hn::LoadU(F32(), b + i + kLanes), sum1);
  }
  float sum = Sum(hn::Add(sum0, sum1));
  for (; i < d; ++i) sum += a[i] * b[i];
  return sum;
}

// out = p a + q b for any d; out may be a or b.
inline void Combine(float p, const float* a, float q, const float* b, size_t d, float* out) {
  const VF vp = hn::Set(F32(), p), vq = hn::Set(F32(), q);
  size_t i = 0;
  for (; i + kLanes <= d; i += kLanes) {
    const VF sum = hn::MulAdd(vp, hn::LoadU(F32(), a + i), hn::Mul(vq, hn::LoadU(F32(), b + i)));
    hn::StoreU(sum, F32(), out + i);
  }
  for (; i < d; ++i) out[i] = p * a[i] + q * b[i];
}

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
