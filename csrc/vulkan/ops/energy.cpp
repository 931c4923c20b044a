// The operations energy_score and langevin.
#include "vulkan/ops/candidates.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace ebmvk {
namespace {

struct EnergyWork {
  Buffer params;
  Table x, score, responsibilities, energy, rest;
  Candidates candidates;
  Program program;

  EnergyWork(Engine& engine, const Points& points, std::uint32_t capacity, std::uint32_t k)
      : params(engine.device(), Buffer::Kind::upload, 16),
        x(engine.device(), capacity, points.d(), 4 * points.quads(), Buffer::Kind::upload),
        score(engine.device(), capacity, points.d(), 4 * points.quads(), Buffer::Kind::readback),
        responsibilities(engine.device(), capacity, k, k, Buffer::Kind::readback),
        energy(engine.device(), capacity, 1, 1, Buffer::Kind::readback),
        rest(engine.device(), capacity, 1, 1, Buffer::Kind::readback),
        candidates(engine, points, capacity, k),
        program(engine.device()) {
    const auto quads = points.quads();
    program.copy(x.on_host(), x.on_device());
    candidates.record(engine, program, params);
    const auto& pipeline = engine.kernels().get(kernels::EnergyScore::name, engine.row_group(quads),
                                                energy_constants(engine, quads, k), points.storage());
    program.kernel(pipeline,
                   {params, x.on_device(), candidates.rows(), candidates.ids(), candidates.logw.on_device(),
                    candidates.kappa.on_device(), candidates.background.on_device(), energy.on_device(),
                    score.on_device(), responsibilities.on_device(), rest.on_device()},
                   kernels::EnergyScore{quads, k}, capacity);
    for (const auto* table : {&energy, &score, &responsibilities, &rest})
      program.copy(table->on_device(), table->on_host());
    program.finish();
  }
};

struct LangevinWork {
  Buffer params;
  Table x, v, level_table, level_end, diagnostics;
  Candidates candidates;
  Program load, steps, store;

  // Push is kernels::Langevin or kernels::Ghmc.
  template <typename Push>
  LangevinWork(Engine& engine, const Points& points, std::uint32_t capacity, const char* kernel, const Push& push,
               const ChainPlan& plan)
      : params(engine.device(), Buffer::Kind::upload, 48),
        x(engine.device(), capacity, push.d, 4 * push.quads, Buffer::Kind::readback),
        v(engine.device(), capacity, push.d, 4 * push.quads, Buffer::Kind::readback),
        level_table(engine.device(), push.level_rows == 1 ? 1 : capacity, 8 * push.levels, 8 * push.levels,
                    Buffer::Kind::upload),
        level_end(engine.device(), 1, push.levels, push.levels, Buffer::Kind::upload),
        diagnostics(engine.device(), capacity, 8, 8, Buffer::Kind::readback),
        candidates(engine, points, capacity, push.k),
        load(engine.device()),
        steps(engine.device()),
        store(engine.device()) {
    for (const auto* table : {&x, &v, &level_table, &level_end, &diagnostics})
      load.copy(table->on_host(), table->on_device());
    candidates.record(engine, load, params);
    load.finish();
    const auto& pipeline = engine.kernels().get(kernel, plan.group, plan.constants, points.storage(), plan.resident);
    steps.kernel(pipeline,
                 {params, candidates.rows(), candidates.ids(), candidates.logw.on_device(),
                  candidates.kappa.on_device(), candidates.background.on_device(), level_table.on_device(),
                  level_end.on_device(), x.on_device(), v.on_device(), diagnostics.on_device()},
                 push, capacity);
    steps.finish();
    for (const auto* table : {&x, &v, &diagnostics}) store.copy(table->on_device(), table->on_host());
    store.finish();
  }

  void write(const LangevinArguments& in, std::uint64_t begin, std::uint32_t rows) {
    const auto d = in.energy.d;
    x.write(in.energy.x + begin * d, rows);
    v.write(in.v + begin * d, rows);
    candidates.write(in.energy, begin, rows);
    std::fill_n(diagnostics.on_host().as<float>(), std::size_t{8} * rows, 0.0f);
    std::partial_sum(in.steps.begin(), in.steps.end(), level_end.on_host().as<std::uint32_t>());
    auto* entry = level_table.on_host().as<float>();
    const std::size_t table_rows = in.level_rows == 1 ? 1 : rows;
    const std::size_t first = in.level_rows == 1 ? 0 : begin * in.levels;
    for (std::size_t i = first; i < first + table_rows * in.levels; ++i, entry += 8) {
      const double friction =
          static_cast<double>(in.gamma[i]) * in.step_size[i] * (in.integrator.friction * in.leapfrogs);
      const float values[8] = {in.kappa_scale[i], in.logw_shift[i], in.step_size[i],
                               static_cast<float>(std::exp(-friction)),
                               static_cast<float>(std::sqrt(-in.temperature * std::expm1(-2 * friction)))};
      std::copy_n(values, 8, entry);
    }
  }

  void read(const LangevinResults& out, std::uint64_t begin, std::uint32_t rows, std::uint32_t d, double steps_done,
            bool metropolis) {
    x.read(out.x + begin * d, rows);
    v.read(out.v + begin * d, rows);
    const auto* record = diagnostics.on_host().as<float>();
    const double each = 1.0 / std::max(steps_done, 1.0);
    for (std::uint64_t row = begin; row < begin + rows; ++row, record += 8) {
      out.energy[row] = record[0];
      out.kinetic[row] = static_cast<float>(record[1] * each);
      out.energy_error[row] = static_cast<float>(record[2] * each);
      out.tangency[row] = record[3];
      out.acceptance[row] = metropolis && steps_done > 0 ? static_cast<float>(record[4] * each) : 1.0f;
    }
  }
};

// The number of steps of a chain per dispatch, given the device's limit on loop iterations. The
// iterations of a step are counted generously from energy.glsl and chain.glsl; candidates in
// registers (resident.glsl) need fewer.
std::uint64_t steps_per_dispatch(Engine& engine, std::uint32_t quads, std::uint32_t k, const LangevinArguments& in) {
  const auto& device = engine.device().capabilities();
  const std::uint64_t group = engine.row_group(quads), per_invocation = (quads + group - 1) / group;
  const std::uint64_t subgroup = std::max(device.subgroup_size, 1u);
  // One candidate per subgroup, or per invocation without subgroup arithmetic.
  const std::uint64_t dots = std::max((k / std::max<std::uint64_t>(group / subgroup, 1) + 1) * (quads / subgroup + 2),
                                      (k / group + 1) * (quads + 2));
  const std::uint64_t evaluation = dots + per_invocation * (k + 2) + 2 * (k / group + 1);
  const std::uint64_t parts = 64 + 16 * per_invocation;  // moves and reductions
  const std::uint64_t step = std::uint64_t{in.leapfrogs} * in.integrator.evaluations * (evaluation + parts) + parts;
  const std::uint64_t limit = device.loop_rounds;
  const std::uint64_t once = evaluation + k + in.levels;  // entering a level, loading
  if (once + step > limit)
    throw Unsupported("a step of " + std::to_string(in.leapfrogs) + " leapfrogs with " + std::to_string(k) +
                      " candidates goes through loops more often than this driver lets a shader");
  return (limit - once) / (step + evaluation);
}

std::string shape_key(const char* kernel, const Points& points, std::uint32_t capacity, std::uint32_t k) {
  return std::string(kernel) + "/" + std::to_string(points.id()) + "/" + std::to_string(capacity) + "/" +
         std::to_string(k);
}

}  // namespace

void Engine::energy_score(const Points& points, const EnergyArguments& in, const EnergyResults& out) {
  Call call(*this, "energy_score", &points);
  const kernels::EnergyScore push{points.quads(), in.k};
  const auto slice = units_per_slice(push.name, push.flops(1));
  for (std::uint64_t begin = 0; begin < in.rows;) {
    const auto capacity = energy_capacity(*this, points, std::min<std::uint64_t>(in.rows - begin, slice), in.k);
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, in.rows - begin));
    auto& work = workspaces_.get<EnergyWork>(shape_key(push.name, points, capacity, in.k), points.id(), [&] {
      return std::make_shared<EnergyWork>(*this, points, capacity, in.k);
    });
    *work.params.as<std::uint32_t>() = count;
    work.x.write(in.x + begin * in.d, count);
    work.candidates.write(in, begin, count);
    call.run(work.program, push.name, push.flops(count));
    work.energy.read(out.energy + begin, count);
    work.score.read(out.score + begin * in.d, count);
    work.responsibilities.read(out.responsibilities + begin * in.k, count);
    work.rest.read(out.rest + begin, count);
    begin += count;
  }
  call.count();
}

void Engine::langevin(const Points& points, const LangevinArguments& in, const LangevinResults& out) {
  const kernels::Langevin push{points.quads(), in.energy.k, in.energy.d, in.levels, in.level_rows};
  if (in.integrator.metropolis)
    integrate(points, kernels::Ghmc{push.quads, push.k, push.d, push.levels, push.level_rows, in.leapfrogs}, in, out);
  else
    integrate(points, push, in, out);
}

template <typename Push>
void Engine::integrate(const Points& points, const Push& push, const LangevinArguments& in,
                       const LangevinResults& out) {
  Call call(*this, "langevin", &points);
  const char* kernel = in.integrator.name;
  const auto& shape = in.energy;
  const std::uint32_t total = std::accumulate(in.steps.begin(), in.steps.end(), 0u);
  const auto plan = chain_plan(*this, points, shape.k);
  const auto speed = std::string(kernel) + (plan.resident ? "/resident" : "");
  const auto most = steps_per_dispatch(*this, push.quads, shape.k, in);
  const auto slice = std::min<std::uint64_t>(units_per_slice(speed, push.flops(1)), 1u << 14);
  for (std::uint64_t begin = 0; begin < shape.rows;) {
    const auto capacity = energy_capacity(*this, points, std::min<std::uint64_t>(shape.rows - begin, slice), shape.k,
                                          std::uint64_t{32} * in.levels);
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, shape.rows - begin));
    const auto key = shape_key(speed.c_str(), points, capacity, shape.k) + "/" + std::to_string(in.levels) + "/" +
                     std::to_string(in.level_rows == 1) + "/" + std::to_string(in.leapfrogs);
    LangevinWork& work = workspaces_.get<LangevinWork>(
        key, points.id(), [&] { return std::make_shared<LangevinWork>(*this, points, capacity, kernel, push, plan); });
    auto& params = *work.params.template as<typename Push::Params>();
    params.rows = rows;
    params.first_step = in.first_step;
    params.first_chain = in.first_chain + static_cast<std::uint32_t>(begin);
    params.seed_low = static_cast<std::uint32_t>(in.seed);
    params.seed_high = static_cast<std::uint32_t>(in.seed >> 32);
    params.temperature = static_cast<float>(in.temperature);
    work.write(in, begin, rows);
    call.run(work.load);
    std::uint32_t done = 0;
    do {
      const auto fit = std::min(units_per_slice(speed, push.flops(rows)), most);
      params.steps = static_cast<std::uint32_t>(std::min<std::uint64_t>(fit, total - done));
      params.done = done;
      done += params.steps;
      params.last = done == total;
      call.run(work.steps, speed.c_str(), params.steps * push.flops(rows));
    } while (done < total);
    call.run(work.store);
    work.read(out, begin, rows, shape.d, total, in.integrator.metropolis);
    begin += rows;
  }
  call.count();
}

}  // namespace ebmvk
