// Shared by energy_score and langevin: candidate lists on the device, beside the points that they
// refer to.
#pragma once

#include "vulkan/ops/engine.h"

namespace ebmvk {

struct Candidates {
  Candidates(Engine& engine, const Points& points, std::uint32_t capacity, const EnergyScoreArguments& in,
             std::uint64_t begin);

  void write(const EnergyScoreArguments& in, std::uint64_t begin, std::uint64_t rows);
  // Records the upload and, if the points span several shards, the gathering of the candidates'
  // rows.
  void record(Engine& engine, Program& program, const View& params);
  View rows() const;  // the rows that ids() index
  View ids() const;

  Operand named, logw, kappa, background;

 private:
  const Points& points_;
  std::uint32_t capacity_, k_;
  Buffer gathered_;
  Table positions_;  // 0, 1, 2, …: the ids if rows were gathered
};

// energy.glsl's specialisation constants: quads of a row per invocation, and the most candidates.
// The kernel uses `more_bytes` of shared memory per candidate in addition to energy.glsl.
std::vector<std::uint32_t> energy_constants(Engine& engine, std::uint32_t quads, std::uint32_t k,
                                            std::uint32_t more_bytes = 0);

// What energy_score.comp writes.
struct EnergyViews {
  View energy, score, responsibilities, rest;
};

// Records energy_score.comp for `capacity` rows of x.
void record_energy_score(Engine& engine, Program& program, const Points& points, const View& params, const View& x,
                         const Candidates& candidates, std::uint32_t k, const EnergyViews& out, std::uint32_t capacity);

// How an integrator runs: its workgroup, its specialisation constants, and whether it keeps
// candidates in registers.
struct ChainPlan {
  std::uint32_t group;
  std::vector<std::uint32_t> constants;
  bool resident;
};

ChainPlan chain_plan(Engine& engine, Storage storage, std::uint32_t quads, std::uint32_t k,
                     const integrators::Description& integrator);

// The number of rows, at most `wanted`, that one workspace can hold. `row_bytes`: the largest row
// of its other tables.
std::uint32_t energy_capacity(Engine& engine, const Points& points, std::uint64_t wanted, std::uint32_t k,
                              std::uint64_t row_bytes = 0);

}  // namespace ebmvk
