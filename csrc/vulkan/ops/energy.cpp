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
  Operand x, score, responsibilities, energy, rest;
  Buffer unwanted;  // for the score, if it isn't wanted
  Candidates candidates;
  Program program;

  EnergyWork(Engine& engine, const Points& points, std::uint32_t capacity, const EnergyScoreArguments& in,
             const EnergyScoreResults& out, std::uint64_t begin)
      : params(engine.device(), Buffer::Kind::upload, 16),
        x(engine.device(), in.x.from(begin), capacity, in.d, 4 * points.quads(), Buffer::Kind::upload),
        responsibilities(engine.device(), out.responsibilities.from(begin), capacity, in.k, in.k,
                         Buffer::Kind::readback),
        energy(engine.device(), out.energy.from(begin), capacity, 1, 1, Buffer::Kind::readback),
        rest(engine.device(), out.background.from(begin), capacity, 1, 1, Buffer::Kind::readback),
        candidates(engine, points, capacity, in, begin),
        program(engine.device()) {
    const auto pitch = 4 * points.quads();
    if (out.score.wanted())
      score = Operand(engine.device(), out.score.from(begin), capacity, in.d, pitch, Buffer::Kind::readback);
    else
      unwanted = Buffer(engine.device(), Buffer::Kind::device, std::uint64_t{4} * pitch * capacity);
    x.load(engine.kernels(), program, params);
    candidates.record(engine, program, params);
    record_energy_score(engine, program, points, params, x.on_device(), candidates, in.k,
                        {energy.on_device(), unwanted ? View(unwanted) : score.on_device(),
                         responsibilities.on_device(), rest.on_device()},
                        capacity);
    for (const auto* operand : {&energy, &responsibilities, &rest}) operand->store(engine.kernels(), program, params);
    if (!unwanted) score.store(engine.kernels(), program, params);
    program.finish();
  }
};

std::vector<Place> places_of(const EnergyScoreArguments& in, std::uint64_t begin) {
  return {in.x.from(begin), in.ids.from(begin), in.logw.from(begin), in.kappa.from(begin),
          in.log_background.from(begin)};
}

// x or v of chains. The kernel changes the rows in the memory of the result. For rows on the host,
// one table takes the argument and then the result.
struct ChainRows {
  Operand in, out;
  bool in_table;

  ChainRows(Engine& engine, const Place& from, const Place& to, std::uint32_t capacity, const Points& points)
      : out(engine.device(), to, capacity, points.d(), 4 * points.quads(), Buffer::Kind::readback),
        in_table(!to.tensor) {
    if (!in_table) in = Operand(engine.device(), from, capacity, points.d(), 4 * points.quads(), Buffer::Kind::upload);
  }

  void load(Engine& engine, Program& program, const Buffer& params) const {
    if (in_table) return program.copy(out.table().on_host(), out.table().on_device());
    in.load(engine.kernels(), program, params);
    program.copy(in.on_device(), out.on_device());
  }
  void write(const Argument<float>& argument, std::uint64_t begin, std::uint32_t rows) {
    (in_table ? out : in).write(argument, begin, rows);
  }
};

// What a dispatch reads; langevin and ghmc read the first part. chain_report reads slot 0.
using ChainParams = kernels::ChainReport::Params;

// The program's sections: the first dispatch and the uploads before it, the other dispatches, and the
// read-back.
struct LangevinWork {
  Buffer params;
  ChainRows x, v;
  Table level_table, level_end, records;
  Operand energy, kinetic, energy_error, acceptance, tangency;
  Candidates candidates;
  Program program;

  // Push is kernels::Langevin or kernels::Ghmc.
  template <typename Push>
  LangevinWork(Engine& engine, const Points& points, std::uint32_t capacity, const Push& push, const ChainPlan& plan,
               const LangevinArguments& in, const LangevinResults& to, std::uint64_t begin)
      : params(engine.device(), Buffer::Kind::upload, kSlotBytes * kSlots),
        x(engine, in.x.from(begin), to.x.from(begin), capacity, points),
        v(engine, in.v.from(begin), to.v.from(begin), capacity, points),
        level_table(engine.device(), push.level_rows == 1 ? 1 : capacity, 8 * push.levels, 8 * push.levels,
                    Buffer::Kind::upload),
        level_end(engine.device(), 1, push.levels, push.levels, Buffer::Kind::upload),
        records(engine.device(), capacity, 8, 8, Buffer::Kind::readback),
        candidates(engine, points, capacity, in, begin),
        program(engine.device()) {
    x.load(engine, program, params);
    v.load(engine, program, params);
    for (const auto* table : {&level_table, &level_end}) program.copy(table->on_host(), table->on_device());
    program.fill(records.on_device(), 0);
    candidates.record(engine, program, params);
    const auto& pipeline =
        engine.kernels().get(in.integrator.name, plan.group, plan.constants, points.storage(), plan.resident);
    for (std::uint32_t i = 0; i < kSlots; ++i, program.cut())
      program.kernel(
          pipeline,
          {View(params, kSlotBytes * i, sizeof(ChainParams)), candidates.rows(), candidates.ids(),
           candidates.logw.on_device(), candidates.kappa.on_device(), candidates.background.on_device(),
           level_table.on_device(), level_end.on_device(), x.out.on_device(), v.out.on_device(), records.on_device()},
          push, capacity);
    for (const auto* rows : {&x, &v}) rows->out.store(engine.kernels(), program, params);
    if (to.energy.tensor)
      report(engine, to, begin, capacity);
    else
      program.copy(records.on_device(), records.on_host());
    program.finish();
  }

  // Records the diagnostics of chains whose results are tensors.
  void report(Engine& engine, const LangevinResults& to, std::uint64_t begin, std::uint32_t capacity) {
    const auto vector = [&](const Result<float>& result) {
      return Operand(engine.device(), result.from(begin), capacity, 1, 1, Buffer::Kind::readback);
    };
    energy = vector(to.energy);
    kinetic = vector(to.kinetic_temperature);
    energy_error = vector(to.energy_error);
    acceptance = vector(to.acceptance);
    tangency = vector(to.tangency);
    constexpr auto group = kernels::ChainReport::group;
    program.kernel(engine.kernels().get(kernels::ChainReport::name, group, {}),
                   {params, records.on_device(), energy.on_device(), kinetic.on_device(), energy_error.on_device(),
                    acceptance.on_device(), tangency.on_device()},
                   0u, (capacity + group - 1) / group);
    for (const auto* operand : {&energy, &kinetic, &energy_error, &acceptance, &tangency})
      operand->store(engine.kernels(), program, params);
  }

  void write(const LangevinArguments& in, std::uint64_t begin, std::uint32_t rows) {
    x.write(in.x, begin, rows);
    v.write(in.v, begin, rows);
    candidates.write(in, begin, rows);
    const auto& s = in.schedule;
    std::partial_sum(s.steps.begin(), s.steps.end(), level_end.on_host().as<std::uint32_t>());
    auto* entry = level_table.on_host().as<float>();
    const std::size_t table_rows = s.rows == 1 ? 1 : rows;
    const std::size_t first = s.rows == 1 ? 0 : begin * s.levels;
    for (std::size_t i = first; i < first + table_rows * s.levels; ++i, entry += 8) {
      const double friction =
          static_cast<double>(s.gamma[i]) * s.step_size[i] * (in.integrator.friction * in.leapfrogs);
      const float values[8] = {s.kappa_scale[i], s.logw_shift[i], s.step_size[i],
                               static_cast<float>(std::exp(-friction)),
                               static_cast<float>(std::sqrt(-in.temperature * std::expm1(-2 * friction)))};
      std::copy_n(values, 8, entry);
    }
  }

  ChainParams& params_of(std::uint32_t slot) {
    return *reinterpret_cast<ChainParams*>(params.as<char>() + kSlotBytes * slot);
  }

  void read(const LangevinResults& out, std::uint64_t begin, std::uint32_t rows, double each, bool metropolis) {
    x.out.read(out.x, begin, rows);
    v.out.read(out.v, begin, rows);
    if (out.energy.tensor) return;
    const auto* record = records.on_host().as<float>();
    for (std::uint64_t row = begin; row < begin + rows; ++row, record += 8) {
      out.energy.host[row] = record[0];
      out.kinetic_temperature.host[row] = static_cast<float>(record[1] * each);
      out.energy_error.host[row] = static_cast<float>(record[2] * each);
      out.tangency.host[row] = record[3];
      out.acceptance.host[row] = metropolis ? static_cast<float>(record[4] * each) : 1.0f;
    }
  }
};

std::string keys_of(const LangevinArguments& in, const LangevinResults& out, std::uint64_t begin) {
  auto from = places_of(in, begin);
  from.push_back(in.v.from(begin));
  std::vector<Place> to;
  for (const auto* result :
       {&out.x, &out.v, &out.energy, &out.kinetic_temperature, &out.energy_error, &out.acceptance, &out.tangency})
    to.push_back(result->from(begin));
  return ebmvk::keys_of(from, to);
}

// The scalars of a call's dispatches, before any step is done. each: 1 / the number of steps.
ChainParams params_of(const LangevinArguments& in, std::uint64_t begin, std::uint32_t rows, double each,
                      bool metropolis) {
  ChainParams params{};
  params.rows = rows;
  params.first_step = in.first_step;
  params.first_chain = in.first_chain + static_cast<std::uint32_t>(begin);
  params.seed_low = static_cast<std::uint32_t>(in.seed);
  params.seed_high = static_cast<std::uint32_t>(in.seed >> 32);
  params.temperature = static_cast<float>(in.temperature);
  params.each_high = static_cast<float>(each);
  params.each_low = static_cast<float>(each - params.each_high);
  params.metropolis = metropolis;
  return params;
}

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
  // Moves and reductions, also of the one subgroup that moves a chain with candidates in registers
  const std::uint64_t parts = 64 + 16 * (per_invocation + quads / subgroup);
  const std::uint64_t step = std::uint64_t{in.leapfrogs} * in.integrator.evaluations * (evaluation + parts) + parts;
  const std::uint64_t limit = device.loop_rounds;
  const std::uint64_t once = evaluation + k + in.schedule.levels;  // entering a level, loading
  if (once + step > limit)
    throw Unsupported("a step of " + std::to_string(in.leapfrogs) + " leapfrogs with " + std::to_string(k) +
                      " candidates needs more loop iterations than this driver lets a shader run");
  return (limit - once) / (step + evaluation);
}

std::string shape_key(const char* kernel, const Points& points, std::uint32_t capacity, std::uint32_t k) {
  return std::string(kernel) + "/" + std::to_string(points.id()) + "/" + std::to_string(capacity) + "/" +
         std::to_string(k);
}

}  // namespace

void record_energy_score(Engine& engine, Program& program, const Points& points, const View& params, const View& x,
                         const Candidates& candidates, std::uint32_t k, const EnergyViews& out,
                         std::uint32_t capacity) {
  const auto quads = points.quads();
  const auto& pipeline = engine.kernels().get(kernels::EnergyScore::name, engine.row_group(quads),
                                              energy_constants(engine, quads, k), points.storage());
  program.kernel(
      pipeline,
      {params, x, candidates.rows(), candidates.ids(), candidates.logw.on_device(), candidates.kappa.on_device(),
       candidates.background.on_device(), out.energy, out.score, out.responsibilities, out.rest},
      kernels::EnergyScore{quads, k}, capacity);
}

void Engine::energy_score(const Points& points, const EnergyScoreArguments& in, const EnergyScoreResults& out) {
  Call call(*this, "energy_score", &points);
  const kernels::EnergyScore push{points.quads(), in.k};
  const auto slice = units_per_slice(push.name, push.flops(1));
  for (std::uint64_t begin = 0; begin < in.rows;) {
    const auto capacity = energy_capacity(*this, points, std::min<std::uint64_t>(in.rows - begin, slice), in.k);
    const auto count = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, in.rows - begin));
    const auto* kind = out.score.wanted() ? push.name : "energy";
    const auto keys = keys_of(places_of(in, begin), {out.energy.from(begin), out.score.from(begin),
                                                     out.responsibilities.from(begin), out.background.from(begin)});
    auto& work = workspaces_.get<EnergyWork>(shape_key(kind, points, capacity, in.k) + keys, points.id(), [&] {
      return std::make_shared<EnergyWork>(*this, points, capacity, in, out, begin);
    });
    *work.params.as<std::uint32_t>() = count;
    work.x.write(in.x, begin, count);
    work.candidates.write(in, begin, count);
    call.run(work.program, push.name, push.flops(count));
    work.energy.read(out.energy, begin, count);
    if (out.score.wanted()) work.score.read(out.score, begin, count);
    work.responsibilities.read(out.responsibilities, begin, count);
    work.rest.read(out.background, begin, count);
    begin += count;
  }
  call.count();
}

void Engine::langevin(const Points& points, const LangevinArguments& in, const LangevinResults& out) {
  if (!in.integrator.metropolis && in.leapfrogs != 1) {  // they ignore it
    auto one = in;
    one.leapfrogs = 1;
    return langevin(points, one, out);
  }
  const kernels::Langevin push{points.quads(), in.k, in.d, in.schedule.levels, in.schedule.rows};
  if (in.integrator.metropolis)
    integrate(points, kernels::Ghmc{push.quads, push.k, push.d, push.levels, push.level_rows, in.leapfrogs}, in, out);
  else
    integrate(points, push, in, out);
}

template <typename Push>
void Engine::integrate(const Points& points, const Push& push, const LangevinArguments& in,
                       const LangevinResults& out) {
  Call call(*this, "langevin", &points);
  const auto& shape = in;
  const auto& each_level = in.schedule.steps;
  const std::uint32_t total = std::accumulate(each_level.begin(), each_level.end(), 0u);
  const double each = 1.0 / std::max(total, 1u);
  const bool metropolis = in.integrator.metropolis && total > 0;
  const auto plan = chain_plan(*this, points.storage(), push.quads, shape.k, in.integrator);
  const auto speed = std::string(in.integrator.name) + (plan.resident ? "/resident" : "");
  const auto most = steps_per_dispatch(*this, push.quads, shape.k, in);
  const auto slice = std::min<std::uint64_t>(units_per_slice(speed, push.flops(1)), 1u << 14);
  for (std::uint64_t begin = 0; begin < shape.rows;) {
    const auto capacity = energy_capacity(*this, points, std::min<std::uint64_t>(shape.rows - begin, slice), shape.k,
                                          std::uint64_t{32} * in.schedule.levels);
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, shape.rows - begin));
    const auto key = shape_key(speed.c_str(), points, capacity, shape.k) + "/" + std::to_string(push.levels) + "/" +
                     std::to_string(push.level_rows == 1) + "/" + std::to_string(in.leapfrogs) +
                     keys_of(in, out, begin);
    LangevinWork& work = workspaces_.get<LangevinWork>(key, points.id(), [&] {
      return std::make_shared<LangevinWork>(*this, points, capacity, push, plan, in, out, begin);
    });
    work.write(in, begin, rows);
    const auto start = params_of(in, begin, rows, each, metropolis);
    std::uint32_t done = 0;
    for (bool first = true; first || done < total; first = false) {
      const std::uint32_t end = call.slots(speed);
      const auto fit = std::min(units_per_slice(speed, push.flops(rows)), most);
      std::uint32_t slot = first ? 0 : 1;
      do {
        const auto steps = static_cast<std::uint32_t>(std::min<std::uint64_t>(fit, total - done));
        auto& params = work.params_of(slot) = start;
        params.steps = steps;
        params.done = done;
        params.last = done + steps == total;
        done += steps;
        call.add(work.program, slot, speed, steps * push.flops(rows));
      } while (done < total && ++slot < end);
      if (done == total) call.add(work.program, kSlots);
      call.run();
    }
    work.read(out, begin, rows, each, metropolis);
    begin += rows;
  }
  call.count();
}

}  // namespace ebmvk
