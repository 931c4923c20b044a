#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "cpu/langevin.cpp"
#include "cpu/simd.h"
//
#include "cpu/chain.h"
#include "cpu/energy-inl.h"
#include "cpu/langevin.h"
#include "cpu/philox-inl.h"
#include "integrators.h"

HWY_BEFORE_NAMESPACE();
namespace ebmvk::HWY_NAMESPACE {
namespace {

// Each loop below passes a state of n floats (a multiple of kPad) through the registers once and
// returns the sums that the next loop needs. It handles two vectors at a time, each with its own
// accumulator.
struct Sums {
  VF a[2], b[2];
  // Written out, because a constructor that the compiler adds would not be compiled for this
  // instruction set.
  Sums() { a[0] = a[1] = b[0] = b[1] = hn::Zero(F32()); }
  float A() const { return Sum(hn::Add(a[0], a[1])); }
  float B() const { return Sum(hn::Add(b[0], b[1])); }
};

// v += p * pull - q * x; returns x.v and v.v
inline void Kick(float p, float q, const float* pull, const float* x, size_t n, float* v, float& xv, float& vv) {
  const VF vp = hn::Set(F32(), p), vq = hn::Set(F32(), q);
  Sums sums;
  for (size_t i = 0; i < n; i += 2 * kLanes) {
    for (size_t u = 0; u < 2; ++u) {
      const size_t at = i + u * kLanes;
      const VF xs = hn::Load(F32(), x + at);
      const VF sum = hn::MulAdd(vp, hn::Load(F32(), pull + at), hn::NegMulAdd(vq, xs, hn::Load(F32(), v + at)));
      hn::Store(sum, F32(), v + at);
      sums.a[u] = hn::MulAdd(xs, sum, sums.a[u]);
      sums.b[u] = hn::MulAdd(sum, sum, sums.b[u]);
    }
  }
  xv = sums.A();
  vv = sums.B();
}

// Coefficients of the geodesic move for time t at speed |v|: x' = cos x + slide v, v' = cos v -
// turn x.
struct Move {
  float cos, slide, turn;
};

inline Move Geodesic(float vv, double t) {
  const double speed = std::sqrt(static_cast<double>(vv)), angle = speed * t, sine = std::sin(angle);
  return {static_cast<float>(std::cos(angle)), static_cast<float>(speed > 0 ? sine / speed : t),
          static_cast<float>(speed * sine)};
}

// Applies the move; returns other.x' and v'.v'
inline void Glide(const Move& m, const float* other, size_t n, float* x, float* v, float& ox, float& vv) {
  const VF c = hn::Set(F32(), m.cos), slide = hn::Set(F32(), m.slide), turn = hn::Set(F32(), m.turn);
  Sums sums;
  for (size_t i = 0; i < n; i += 2 * kLanes) {
    for (size_t u = 0; u < 2; ++u) {
      const size_t at = i + u * kLanes;
      const VF xs = hn::Load(F32(), x + at), vs = hn::Load(F32(), v + at);
      const VF there = hn::MulAdd(c, xs, hn::Mul(slide, vs));
      const VF speed = hn::NegMulAdd(turn, xs, hn::Mul(c, vs));
      hn::Store(there, F32(), x + at);
      hn::Store(speed, F32(), v + at);
      // `other` may be x itself, which gives |x'|^2.
      sums.a[u] = hn::MulAdd(hn::Load(F32(), other + at), there, sums.a[u]);
      sums.b[u] = hn::MulAdd(speed, speed, sums.b[u]);
    }
  }
  ox = sums.A();
  vv = sums.B();
}

// v = decay v + spread (noise - along x); returns v.v
inline float Stir(float decay, float spread, float along, const float* noise, const float* x, size_t n, float* v) {
  const VF vd = hn::Set(F32(), decay), vs = hn::Set(F32(), spread), va = hn::Set(F32(), along);
  Sums sums;
  for (size_t i = 0; i < n; i += 2 * kLanes) {
    for (size_t u = 0; u < 2; ++u) {
      const size_t at = i + u * kLanes;
      const VF tangent = hn::NegMulAdd(va, hn::Load(F32(), x + at), hn::Load(F32(), noise + at));
      const VF sum = hn::MulAdd(vd, hn::Load(F32(), v + at), hn::Mul(vs, tangent));
      hn::Store(sum, F32(), v + at);
      sums.a[u] = hn::MulAdd(sum, sum, sums.a[u]);
    }
  }
  return sums.A();
}

inline void Scale(float factor, size_t n, float* x) {
  const VF f = hn::Set(F32(), factor);
  for (size_t i = 0; i < n; i += kLanes) hn::Store(hn::Mul(f, hn::Load(F32(), x + i)), F32(), x + i);
}

// v -= along x; returns v.v
inline float Flatten(float along, const float* x, size_t n, float* v) {
  float unused, vv;
  Kick(0.0f, along, x, x, n, v, unused, vv);
  return vv;
}

inline void Draw(const ChainParams& p, uint32_t step, uint32_t stream, size_t d, size_t n, float* noise) {
  FillNormals(p.seed, step, p.chain, stream, d, noise);
  std::fill(noise + d, noise + n, 0.0f);
}

// a.b of padded rows
inline float Inner(const float* a, const float* b, size_t n) {
  Sums sums;
  for (size_t i = 0; i < n; i += 2 * kLanes) {
    for (size_t u = 0; u < 2; ++u) {
      const size_t at = i + u * kLanes;
      sums.a[u] = hn::MulAdd(hn::Load(F32(), a + at), hn::Load(F32(), b + at), sums.a[u]);
    }
  }
  return sums.A();
}

// The parameters with which a level moves a chain.
struct Dynamics {
  const Gathered& c;
  const ChainParams& p;
  size_t d;
  double h;
  float keep, spread;

  // `friction`: the time of each O, as a multiple of h.
  Dynamics(const Gathered& candidates, const Level& level, const ChainParams& params, size_t dimension, double friction)
      : c(candidates), p(params), d(dimension), h(level.step_size) {
    const double rate = level.gamma * h * friction;
    keep = static_cast<float>(std::exp(-rate));
    spread = static_cast<float>(std::sqrt(-p.temperature * std::expm1(-2 * rate)));
  }
};

using integrators::Part;

// v += share * h * force
inline void Push(const Dynamics& m, double share, const Force& force, Chain& s) {
  const float time = static_cast<float>(share * m.h);
  float unused;
  Kick(time * force.scale, time * force.radial, s.pull, s.x, m.c.n, s.v, unused, s.vv);
}

// Geodesic move for a share of h, projection onto the sphere, kick, projection onto the tangent
// space. Returns the force at the new state.
inline Force Land(const Dynamics& m, const Part& part, Chain& s) {
  const size_t n = m.c.n;
  const float time = static_cast<float>(part.kick * m.h);
  float xx, xv, vv;
  Glide(Geodesic(s.vv, part.share * m.h), s.x, n, s.x, s.v, xx, vv);
  const float norm = std::sqrt(xx);
  Scale(1 / norm, n, s.x);
  const Force force = Evaluate(m.c, s.x, s.pull);
  Kick(time * force.scale, time * force.radial, s.pull, s.x, n, s.v, xv, vv);
  if (vv > 0) s.tangency = std::max(s.tangency, std::abs(xv) / std::sqrt(vv));
  s.tangency = std::max(s.tangency, std::abs(norm - 1));
  s.vv = Flatten(xv, s.x, n, s.v);
  return force;
}

inline void DrawNoise(const Dynamics& m, uint32_t step, uint32_t number, Chain& s) {
  if (m.spread > 0) Draw(m.p, step, number == 0 ? kNoiseStream : kNoiseStream2, m.d, m.c.n, s.noise);
}

// An O with the noise that was drawn; `along` is noise.x.
inline void Heat(const Dynamics& m, uint32_t number, float along, Chain& s) {
  const float hot = Stir(m.keep, m.spread, along, s.noise, s.x, m.c.n, s.v);
  s.heat += (static_cast<double>(hot) - s.vv) / 2;
  if (number == 0) s.kinetic += hot;
  s.vv = hot;
}

inline void DrawAndHeat(const Dynamics& m, uint32_t step, uint32_t number, Chain& s) {
  DrawNoise(m, step, number, s);
  Heat(m, number, Inner(s.noise, s.x, m.c.n), s);
}

// The parts of an integrator from the I-th on, unrolled by the compiler. Returns the force at the
// last landing.
template <class Row, size_t I = 0>
inline Force RunParts(const Dynamics& m, uint32_t step, const Force& force, Chain& s) {
  constexpr size_t kCount = std::size(Row::parts);
  if constexpr (I == kCount) {
    return force;
  } else {
    constexpr Part part = Row::parts[I];
    constexpr Part next = Row::parts[I + 1 < kCount ? I + 1 : I];
    if constexpr (part.kind == Part::Kind::kick) {
      Push(m, part.share, force, s);
    } else if constexpr (part.kind == Part::Kind::land) {
      const Force there = Land(m, part, s);
      return RunParts<Row, I + 1>(m, step, there, s);
    } else if constexpr (part.kind == Part::Kind::noise) {
      DrawAndHeat(m, step, part.number, s);
    } else if constexpr (next.kind == Part::Kind::noise) {
      // The move returns noise.x as well, which saves a pass over both.
      DrawNoise(m, step, next.number, s);
      float along;
      Glide(Geodesic(s.vv, part.share * m.h), s.noise, m.c.n, s.x, s.v, along, s.vv);
      Heat(m, next.number, along, s);
      return RunParts<Row, I + 2>(m, step, force, s);
    } else {
      float unused;
      Glide(Geodesic(s.vv, part.share * m.h), s.x, m.c.n, s.x, s.v, unused, s.vv);
    }
    return RunParts<Row, I + 1>(m, step, force, s);
  }
}

// One step of an unadjusted integrator.
template <class Row>
inline Force Step(const Dynamics& m, uint32_t step, const Force& now, Chain& s) {
  const double before = now.energy + s.vv / 2.0;
  s.heat = 0;
  const Force force = RunParts<Row>(m, step, now, s);
  s.error += std::abs(force.energy + s.vv / 2.0 - before - s.heat);
  s.accepted += 1;
  return force;
}

// One step of GHMC: a trajectory between two halves of the friction.
template <class Row>
inline Force Trajectory(const Dynamics& m, uint32_t step, const Force& now, Chain& s) {
  const size_t n = m.c.n, bytes = n * sizeof(float);
  DrawAndHeat(m, step, 0, s);
  const float hot = s.vv;
  float* saved[3] = {s.start, s.start + n, s.start + 2 * n};
  float* moved[3] = {s.x, s.v, s.pull};
  for (size_t i = 0; i < 3; ++i) std::memcpy(saved[i], moved[i], bytes);
  Force force = now;
  for (uint32_t i = 0; i < m.p.leapfrogs; ++i) force = RunParts<Row>(m, step, force, s);
  const double change = (static_cast<double>(force.energy) - now.energy) + (static_cast<double>(s.vv) - hot) / 2;
  s.error += std::abs(change);
  // False for NaN too: a trajectory that blew up is rejected.
  if (change <= -m.p.temperature * std::log(MetropolisUniform(m.p.seed, step, m.p.chain))) {
    s.accepted += 1;
  } else {
    // Return to the state before the trajectory and reverse the velocity, as detailed balance
    // requires.
    for (size_t i = 0; i < 3; ++i) std::memcpy(moved[i], saved[i], bytes);
    Scale(-1, n, s.v);
    force = now;
  }
  DrawAndHeat(m, step, 1, s);
  return force;
}

template <class Row>
void RunSteps(const Gathered& c, const Level& level, const ChainParams& p, size_t d, uint32_t first_step, Chain& s) {
  const Dynamics m(c, level, p, d, Row::friction * (Row::metropolis ? p.leapfrogs : 1));
  Force force = Evaluate(c, s.x, s.pull);
  for (uint32_t done = 0; done < level.steps; ++done) {
    const uint32_t step = first_step + done;  // the last step may be 2^32 - 1
    if constexpr (Row::metropolis) {
      force = Trajectory<Row>(m, step, force, s);
    } else {
      force = Step<Row>(m, step, force, s);
    }
  }
  s.energy = force.energy;
}

// All steps of one level with the integrator of number p.integrator. A template chooses it, because
// a lambda would not be compiled for this instruction set.
template <size_t I = 0>
void RunWith(const Gathered& c, const Level& level, const ChainParams& p, size_t d, uint32_t first_step, Chain& s) {
  if (p.integrator == I) {
    RunSteps<std::tuple_element_t<I, integrators::All>>(c, level, p, d, first_step, s);
  } else if constexpr (I + 1 < std::tuple_size_v<integrators::All>) {
    RunWith<I + 1>(c, level, p, d, first_step, s);
  }
}

void RunLevel(const Gathered& c, const Level& level, const ChainParams& p, size_t d, uint32_t first_step, Chain& s) {
  RunWith(c, level, p, d, first_step, s);
}

// |v|^2 of a state that a call begins with, summed exactly as at the end of a step, so that a
// trajectory may be cut anywhere.
float SquaredNorm(const float* v, size_t n) {
  Sums sums;
  for (size_t i = 0; i < n; i += 2 * kLanes) {
    for (size_t u = 0; u < 2; ++u) {
      const VF vs = hn::Load(F32(), v + i + u * kLanes);
      sums.b[u] = hn::MulAdd(vs, vs, sums.b[u]);
    }
  }
  return sums.B();
}

void FillNormalsRow(uint64_t seed, uint32_t step, uint32_t chain, uint32_t stream, size_t d, float* out) {
  FillNormals(seed, step, chain, stream, d, out);
}

}  // namespace
}  // namespace ebmvk::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
#include "cpu/rows.h"

namespace ebmvk {
namespace {
HWY_EXPORT(RunLevel);
HWY_EXPORT(SquaredNorm);
HWY_EXPORT(FillNormalsRow);

Level LevelOf(const Schedule& schedule, size_t row, size_t level) {
  const size_t i = (schedule.rows > 1 ? row * schedule.levels : 0) + level;
  return {schedule.kappa_scale[i], schedule.logw_shift[i], schedule.step_size[i], schedule.gamma[i],
          schedule.steps[level]};
}

void RunChain(const LangevinArguments& in, const LangevinResults& out, size_t row, RowSpace& space) {
  const size_t d = in.d, n = RoundUp(d, 32);
  Gathered& candidates = space.candidates.Gather(in, row);
  Chain chain;
  chain.x = space.floats.get();
  chain.v = chain.x + n;
  chain.pull = chain.v + n;
  chain.start = chain.pull + n;
  chain.noise = chain.start + 3 * n;
  std::copy_n(in.x + row * d, d, chain.x);
  std::copy_n(in.v + row * d, d, chain.v);
  chain.vv = HWY_DYNAMIC_DISPATCH(SquaredNorm)(chain.v, n);

  const ChainParams p{in.seed, in.first_chain + static_cast<uint32_t>(row), in.integrator, in.leapfrogs,
                      in.temperature};
  uint32_t steps = 0;
  for (size_t l = 0; l < in.schedule.levels; ++l) {
    const Level level = LevelOf(in.schedule, row, l);
    for (size_t j = 0; j < in.k; ++j) {
      candidates.logw[j] = in.logw[row * in.k + j] + level.logw_shift;
      candidates.kappa[j] = in.kappa[row * in.k + j] * level.kappa_scale;
    }
    HWY_DYNAMIC_DISPATCH(RunLevel)(candidates, level, p, d, in.first_step + steps, chain);
    steps += level.steps;
  }

  std::copy_n(chain.x, d, out.x + row * d);
  std::copy_n(chain.v, d, out.v + row * d);
  const double count = std::max<uint32_t>(1, steps);
  out.energy[row] = chain.energy;
  out.kinetic_temperature[row] = static_cast<float>(chain.kinetic / count / static_cast<double>(d - 1));
  out.energy_error[row] = static_cast<float>(chain.error / count);
  out.tangency[row] = chain.tangency;
  out.acceptance[row] = steps > 0 ? static_cast<float>(chain.accepted / count) : 1.0f;
}

}  // namespace

void Langevin(const LangevinArguments& in, const LangevinResults& out) {
  ForCandidateRows(in, 7 * RoundUp(in.d, 32) + kNoisePad,
                   [&](size_t row, RowSpace& space) { RunChain(in, out, row, space); });
}

void Normals(uint64_t seed, uint32_t first_step, size_t steps, uint32_t first_chain, size_t chains, uint32_t stream,
             size_t d, float* out) {
  const AlignedFloats row = AllocateFloats(d + kNoisePad);
  for (size_t step = 0; step < steps; ++step) {
    for (size_t chain = 0; chain < chains; ++chain, out += d) {
      HWY_DYNAMIC_DISPATCH(FillNormalsRow)
      (seed, first_step + static_cast<uint32_t>(step), first_chain + static_cast<uint32_t>(chain), stream, d,
       row.get());
      std::copy_n(row.get(), d, out);
    }
  }
}

}  // namespace ebmvk
#endif
