// What energy_score and langevin share: candidate lists on the device, next to the points they name.
#pragma once

#include "engine_vulkan.h"

namespace ebmvk {

struct Candidates {
  Candidates(Engine& engine, const Points& points, std::uint32_t capacity, std::uint32_t k);

  void write(const EnergyArguments& in, std::uint64_t begin, std::uint64_t rows);
  // Records the upload and, where the points span several shards, the gathering of the candidates' rows.
  void record(Engine& engine, Program& program, const Buffer& params);
  View rows() const;  // what ids() index
  View ids() const;

  Table named, logw, kappa, background;

 private:
  const Points& points_;
  std::uint32_t capacity_, k_;
  Buffer gathered_;
  Table positions_;  // 0, 1, 2, …: the ids where the rows were gathered
};

// Quads of a row that each invocation owns, and places for candidates: energy.glsl's specialisation constants. The
// kernel shares `more_bytes` per place beyond what energy.glsl does.
std::vector<std::uint32_t> energy_constants(Engine& engine, std::uint32_t quads, std::uint32_t k,
                                            std::uint32_t more_bytes = 0);

// How an integrator runs: workgroup, specialisation constants, and whether it holds its candidates in registers.
struct ChainPlan {
  std::uint32_t group;
  std::vector<std::uint32_t> constants;
  bool resident;
};

ChainPlan chain_plan(Engine& engine, const Rows& points, std::uint32_t k);

// Rows that one workspace can hold, of at most `wanted`; `row_bytes` is the largest row of its further tables.
std::uint32_t energy_capacity(Engine& engine, const Points& points, std::uint64_t wanted, std::uint32_t k,
                              std::uint64_t row_bytes = 0);

}  // namespace ebmvk
