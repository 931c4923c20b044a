// Elementary functions on vectors. Coefficients are minimax fits (Lawson iteration) over the
// reduced ranges.
#if defined(EBMVK_CPU_MATH_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef EBMVK_CPU_MATH_INL_H
#undef EBMVK_CPU_MATH_INL_H
#else
#define EBMVK_CPU_MATH_INL_H
#endif

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

inline VF Constant(float value) { return hn::Set(F32(), value); }

// c[0] + c[1] x + ... by Horner.
template <size_t n>
inline VF Polynomial(VF x, const float (&c)[n]) {
  VF sum = Constant(c[n - 1]);
  for (size_t i = n - 1; i-- > 0;) sum = hn::MulAdd(sum, x, Constant(c[i]));
  return sum;
}

// e^x for x <= 88, within 2 ulp; 0 below -87 (where results would be subnormal) and at -inf.
inline VF Exp(VF x) {
  // e^r on |r| <= ln(2)/2, relative error 2e-9.
  static constexpr float kExp[] = {
      1.0f, 1.000000038f, 5.000000168e-1f, 1.666641541e-1f, 4.166608342e-2f, 8.375134963e-3f, 1.395606582e-3f};
  const VF floor = Constant(-87.0f);
  const auto vanishes = hn::Le(x, floor);
  x = hn::Max(x, floor);
  const auto n = hn::NearestInt(hn::Mul(x, Constant(1.44269504f)));
  const VF whole = hn::ConvertTo(F32(), n);
  // ln 2 in two parts, the first with few enough bits that whole * first is exact.
  VF r = hn::NegMulAdd(whole, Constant(0.693359375f), x);
  r = hn::NegMulAdd(whole, Constant(-2.12194440e-4f), r);
  const auto scale = hn::ShiftLeft<23>(hn::Add(n, hn::Set(I32(), 127)));
  return hn::IfThenElse(vanishes, hn::Zero(F32()), hn::Mul(Polynomial(r, kExp), hn::BitCast(F32(), scale)));
}

// log x for normal positive x; the relative error is below 2e-7, even near 1.
inline VF Log(VF x) {
  // (log(1+f) - f + f^2/2) / f^3 for 1+f in [sqrt(1/2), sqrt(2)].
  static constexpr float kLog[] = {3.333333126e-1f,  -2.499998119e-1f, 2.000068809e-1f,
                                   -1.666915100e-1f, 1.425115563e-1f,  -1.239670045e-1f,
                                   1.163466254e-1f,  -1.165992923e-1f, 7.332529340e-2f};
  const auto root_half = hn::Set(I32(), 0x3f3504f3);
  const auto bits = hn::Sub(hn::BitCast(I32(), x), root_half);
  const VF exponent = hn::ConvertTo(F32(), hn::ShiftRight<23>(bits));
  const auto mantissa = hn::Add(hn::And(bits, hn::Set(I32(), 0x7fffff)), root_half);
  const VF f = hn::Sub(hn::BitCast(F32(), mantissa), Constant(1.0f));
  const VF f2 = hn::Mul(f, f);
  VF tail = hn::Mul(hn::Mul(f2, f), Polynomial(f, kLog));
  tail = hn::MulAdd(exponent, Constant(-2.12194440e-4f), tail);
  tail = hn::MulAdd(f2, Constant(-0.5f), tail);
  return hn::MulAdd(exponent, Constant(0.693359375f), hn::Add(f, tail));
}

struct SinCos {
  VF sin, cos;
};

// Sine and cosine of 2 pi t for |t| <= 1, absolute error below 2e-7.
inline SinCos SinCosTurns(VF t) {
  // sin(pi r / 2) / r and cos(pi r / 2) in r^2, |r| <= 1/2.
  static constexpr float kSin[] = {1.570796327f, -6.459640961e-1f, 7.969258276e-2f, -4.681266476e-3f, 1.582067426e-4f};
  static constexpr float kCos[] = {1.0f, -1.233700541f, 2.536692039e-1f, -2.086007132e-2f, 9.036317019e-4f};
  const VF quarters = hn::Mul(t, Constant(4.0f));
  const auto nearest = hn::NearestInt(quarters);
  const VF r = hn::Sub(quarters, hn::ConvertTo(F32(), nearest));
  const VF r2 = hn::Mul(r, r);
  const VF s = hn::Mul(r, Polynomial(r2, kSin));
  const VF c = Polynomial(r2, kCos);
  const VU32 quadrant = hn::BitCast(U32(), nearest);
  const VU32 two = hn::Set(U32(), 2u);
  const VU32 sin_sign = hn::ShiftLeft<30>(hn::And(quadrant, two));
  const VU32 cos_sign = hn::ShiftLeft<30>(hn::And(hn::Add(quadrant, hn::Set(U32(), 1u)), two));
  // Odd quadrants swap sine and cosine; the lowest bit, moved to the sign, is the mask.
  const auto odd =
      hn::MaskFromVec(hn::BitCast(F32(), hn::ShiftRight<31>(hn::BitCast(I32(), hn::ShiftLeft<31>(quadrant)))));
  const VF sine = hn::IfThenElse(odd, c, s), cosine = hn::IfThenElse(odd, s, c);
  return {hn::BitCast(F32(), hn::Xor(hn::BitCast(U32(), sine), sin_sign)),
          hn::BitCast(F32(), hn::Xor(hn::BitCast(U32(), cosine), cos_sign))};
}

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
