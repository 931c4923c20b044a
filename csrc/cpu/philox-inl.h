// Philox4x32-10 (Salmon et al., SC 2011) and Box-Muller on vectors, with the layout of
// ebmvk/engine/philox.py.
#if defined(EBMVK_CPU_PHILOX_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef EBMVK_CPU_PHILOX_INL_H
#undef EBMVK_CPU_PHILOX_INL_H
#else
#define EBMVK_CPU_PHILOX_INL_H
#endif

#include "cpu/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

constexpr size_t kCounters = kLanes / 2;  // per vector of 64-bit lanes
constexpr size_t kGroups = 4;             // vectors in flight; hides the latency of ten dependent multiplications
constexpr size_t kNormalsPerDraw = 4 * kCounters * kGroups;

// Words are in the low halves of 64-bit lanes. Multiplication ignores the high halves, which hold
// garbage.
struct Counters {
  VU64 word[4];
};

inline VU64 Times(VU64 a, VU32 m) { return hn::MulEven(hn::BitCast(U32(), a), m); }

inline void PhiloxRound(Counters& c, VU64 k0, VU64 k1, VU32 m0, VU32 m1) {
  const VU64 p0 = Times(c.word[0], m0), p1 = Times(c.word[2], m1);
  c.word[0] = hn::Xor3(hn::ShiftRight<32>(p1), c.word[1], k0);
  c.word[1] = p1;
  c.word[2] = hn::Xor3(hn::ShiftRight<32>(p0), c.word[3], k1);
  c.word[3] = p0;
}

// Words a in even lanes, b in odd lanes.
inline VU32 Pair(VU64 a, VU64 b) {
  return hn::OddEven(hn::BitCast(U32(), hn::ShiftLeft<32>(b)), hn::BitCast(U32(), a));
}

// (bits + 1/2) 2^-32, at most 1 - 2^-24. In two halves, so that there is only one rounding.
inline VF Uniform(VU32 bits) {
  const VF high = hn::ConvertTo(F32(), hn::BitCast(I32(), hn::ShiftRight<16>(bits)));
  const VF low = hn::ConvertTo(F32(), hn::BitCast(I32(), hn::And(bits, hn::Set(U32(), 0xffffu))));
  const VF whole = hn::MulAdd(high, Constant(65536.0f), low);
  const VF u = hn::MulAdd(whole, Constant(0x1p-32f), Constant(0x1p-33f));
  return hn::IfThenElse(hn::Le(u, Constant(1 - 0x1p-24f)), u, Constant(1 - 0x1p-24f));
}

// Stores the normals of one vector of counters: those of its even lanes at `even`, of its odd lanes
// at `odd`.
inline void StoreNormals(const Counters& c, float* even, float* odd) {
  const VF u = Uniform(Pair(c.word[0], c.word[2]));
  // The angle as a signed number of turns: same direction, and exact near a whole turn.
  const VF signed_bits = hn::ConvertTo(F32(), hn::BitCast(I32(), Pair(c.word[1], c.word[3])));
  const SinCos turn = SinCosTurns(hn::MulAdd(signed_bits, Constant(0x1p-32f), Constant(0x1p-33f)));
  const VF radius = hn::Sqrt(hn::Mul(Constant(-2.0f), Log(u)));
  const VF cosine = hn::Mul(radius, turn.cos), sine = hn::Mul(radius, turn.sin);
  hn::StoreU(hn::InterleaveLower(F32(), cosine, sine), F32(), even);
  hn::StoreU(hn::InterleaveUpper(F32(), cosine, sine), F32(), odd);
}

constexpr size_t kBytesPerCounter = 16;
constexpr size_t kBytesPerDraw = kBytesPerCounter * kCounters * kGroups;

// The offsets of the counters in a vector. Lane pairs (2b, 2b+1) form 128-bit block b, whose halves
// InterleaveLower and InterleaveUpper separate: even lanes get the first half of the counters and
// odd lanes the second, so that both stores are contiguous.
inline VU64 Offsets() {
  alignas(64) uint64_t offsets[kCounters];
  for (size_t lane = 0; lane < kCounters; ++lane) offsets[lane] = lane / 2 + (lane % 2) * (kCounters / 2);
  return hn::Load(U64(), offsets);
}

// Ten rounds for counters (step, chain, quad + 0 .. kCounters * kGroups - 1, stream).
inline void Draw(uint64_t seed, uint32_t step, uint32_t chain, uint64_t quad, uint32_t stream, VU64 offsets,
                 Counters (&c)[kGroups]) {
  const VU32 m0 = hn::Set(U32(), 0xD2511F53u), m1 = hn::Set(U32(), 0xCD9E8D57u);
  for (size_t g = 0; g < kGroups; ++g) {
    c[g].word[0] = hn::Set(U64(), uint64_t{step});
    c[g].word[1] = hn::Set(U64(), uint64_t{chain});
    c[g].word[2] = hn::Add(offsets, hn::Set(U64(), quad + g * kCounters));
    c[g].word[3] = hn::Set(U64(), uint64_t{stream});
  }
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    const VU64 key0 = hn::Set(U64(), uint64_t{k0}), key1 = hn::Set(U64(), uint64_t{k1});
    for (size_t g = 0; g < kGroups; ++g) PhiloxRound(c[g], key0, key1, m0, m1);
  }
}

// The bytes of counters quad and after, each word from its lowest byte on: kBytesPerDraw of them.
inline void FillBytes(uint64_t seed, uint32_t step, uint32_t chain, uint32_t quad, uint32_t stream, uint8_t* out) {
  Counters c[kGroups];
  Draw(seed, step, chain, quad, stream, Offsets(), c);
  for (size_t g = 0; g < kGroups; ++g) {
    const VU64 first = hn::BitCast(U64(), Pair(c[g].word[0], c[g].word[1]));
    const VU64 second = hn::BitCast(U64(), Pair(c[g].word[2], c[g].word[3]));
    uint64_t* at = reinterpret_cast<uint64_t*>(out + g * kCounters * kBytesPerCounter);
    hn::StoreU(hn::InterleaveLower(U64(), first, second), U64(), at);
    hn::StoreU(hn::InterleaveUpper(U64(), first, second), U64(), at + kCounters);
  }
}

// Normals for coordinates 0 .. d-1 of (step, chain, stream); writes up to the next multiple of
// kNormalsPerDraw.
inline void FillNormals(uint64_t seed, uint32_t step, uint32_t chain, uint32_t stream, size_t d, float* out) {
  const VU64 offsets = Offsets();
  for (size_t quad = 0; 4 * quad < d; quad += kCounters * kGroups) {
    Counters c[kGroups];
    Draw(seed, step, chain, quad, stream, offsets, c);
    for (size_t g = 0; g < kGroups; ++g) {
      float* at = out + 4 * (quad + g * kCounters);
      StoreNormals(c[g], at, at + kLanes);
    }
  }
}

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif
