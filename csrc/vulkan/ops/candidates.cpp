#include "vulkan/ops/candidates.h"

#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <numeric>

namespace ebmvk {
namespace {

constexpr std::uint64_t kTableBytes = std::uint64_t{64} << 20;  // largest table; longer batches are done in parts

// The 32-bit registers of an invocation that an integrator needs for everything but candidates.
constexpr std::uint32_t kOtherWords = 64;

// The most invocations of a workgroup that keeps candidates in registers. 512 with 128 registers each
// take half of an RDNA workgroup processor, and all registers of an NVIDIA thread block. With
// subgroups of 64 (GCN, Vega), 512 invocations leave 128 registers for each, and halves spill.
std::uint32_t resident_group(const Capabilities& device) {
  return std::min(device.subgroup_size < 64 ? 512u : 256u, device.max_group_size);
}

std::uint32_t divide_up(std::uint32_t a, std::uint32_t b) { return (a + b - 1) / b; }

std::uint32_t places(std::uint32_t k) { return power_of_two(std::max(k, 32u)); }

// The shared memory of energy.glsl, plus `more_bytes` for each candidate.
std::uint64_t shared_bytes(std::uint32_t group, std::uint32_t quads, std::uint32_t k, std::uint32_t more_bytes = 0) {
  return std::uint64_t{16} * group * divide_up(quads, group) + std::uint64_t{20 + more_bytes} * places(k);
}

}  // namespace

std::vector<std::uint32_t> energy_constants(Engine& engine, std::uint32_t quads, std::uint32_t k,
                                            std::uint32_t more_bytes) {
  const auto group = engine.row_group(quads);
  const auto shared = shared_bytes(group, quads, k, more_bytes) + 32 * group;  // reduce.glsl: portable
  const auto limit = engine.device().capabilities().max_shared_bytes;
  if (shared > limit)
    throw Unsupported(std::to_string(k) + " candidates of " + std::to_string(4 * quads) + " dimensions need " +
                      std::to_string(shared) + " bytes of workgroup memory: the device has " + std::to_string(limit));
  return {divide_up(quads, group), places(k)};
}

ChainPlan chain_plan(Engine& engine, Storage storage, std::uint32_t quads, std::uint32_t k,
                     const integrators::Description& integrator) {
  const auto& device = engine.device().capabilities();
  const auto size = device.subgroup_size;
  const auto streamed = [&] {
    auto constants = energy_constants(engine, quads, k);
    constants.resize(5, 1);
    const auto group = engine.row_group(quads);
    if (engine.kernels().subgroups(group)) constants[2] = group / size;
    return ChainPlan{group, constants, false};
  };
  // A processor has few registers, and streams from its cache.
  if (!engine.resident().value_or(device.type != "cpu") || !size) return streamed();
  const auto lane_quads = divide_up(quads, size);
  const auto words = storage == Storage::float16 ? 2u : 4u;
  const std::uint64_t held_words = device.registers - std::min(device.registers, kOtherWords);
  // State, velocity, noise, and with Metropolis the force where a trajectory began
  const auto rows = 2 + integrator.noises + (integrator.metropolis ? 1 : 0);
  // The smallest workgroup with enough registers, and one invocation per quad of the state.
  for (std::uint32_t subgroups = 1; subgroups * size <= resident_group(device); subgroups *= 2) {
    const auto group = subgroups * size;
    const auto held = divide_up(k, subgroups);
    const auto shared = std::uint64_t{16} * (rows + std::min(subgroups, 8u)) * lane_quads * size +
                        std::uint64_t{8} * held * subgroups + 48 * size;  // resident.glsl, chain.glsl, ghmc.comp
    if (group < quads || held > size || std::uint64_t{held} * lane_quads * words > held_words ||
        shared > device.max_shared_bytes || !engine.kernels().subgroups(group))
      continue;
    return {group, {divide_up(quads, group), places(k), subgroups, held, lane_quads}, true};
  }
  return streamed();
}

std::uint32_t energy_capacity(Engine& engine, const Points& points, std::uint64_t wanted, std::uint32_t k,
                              std::uint64_t row_bytes) {
  const auto& device = engine.device();
  const std::uint64_t row = std::uint64_t{16} * points.quads();  // bytes of a row of x; rows of points are not larger
  const auto largest = std::max({row, std::uint64_t{4} * k, row_bytes});
  std::uint64_t fit = std::min<std::uint64_t>(device.capabilities().max_groups, device.storage_range() / largest);
  fit = std::min(fit, std::max(kTableBytes / largest, std::uint64_t{1}));
  if (points.shards() > 1) fit = std::min(fit, device.storage_range() / (row * k));
  if (fit == 0)
    throw Unsupported(std::to_string(k) + " candidates of " + std::to_string(points.d()) +
                      " dimensions do not fit one binding of " + std::to_string(device.storage_range()) + " bytes");
  std::uint32_t capacity = power_of_two(std::min(wanted, fit));
  return capacity > fit ? capacity / 2 : capacity;
}

Candidates::Candidates(Engine& engine, const Points& points, std::uint32_t capacity, const EnergyScoreArguments& in,
                       std::uint64_t begin)
    : named(engine.device(), in.ids.from(begin), capacity, in.k, in.k, Buffer::Kind::upload),
      logw(engine.device(), in.logw.from(begin), capacity, in.k, in.k, Buffer::Kind::upload),
      kappa(engine.device(), in.kappa.from(begin), capacity, in.k, in.k, Buffer::Kind::upload),
      background(engine.device(), in.log_background.from(begin), capacity, 1, 1, Buffer::Kind::upload),
      points_(points),
      capacity_(capacity),
      k_(in.k) {
  if (points.shards() == 1) return;
  const std::uint64_t count = std::uint64_t{capacity} * k_;
  gathered_ = Buffer(engine.device(), Buffer::Kind::device, checked_product(count, points.row_bytes()));
  positions_ = Table(engine.device(), capacity, k_, k_, Buffer::Kind::upload);
  auto* first = positions_.on_host().as<std::uint32_t>();
  std::iota(first, first + count, 0u);
}

View Candidates::rows() const { return points_.shards() == 1 ? points_.shard(0) : View(gathered_); }

View Candidates::ids() const { return points_.shards() == 1 ? named.on_device() : View(positions_.on_device()); }

void Candidates::write(const EnergyScoreArguments& in, std::uint64_t begin, std::uint64_t rows) {
  named.write(in.ids, begin, rows);
  logw.write(in.logw, begin, rows);
  kappa.write(in.kappa, begin, rows);
  background.write(in.log_background, begin, rows);
}

void Candidates::record(Engine& engine, Program& program, const View& params) {
  for (const auto* operand : {&named, &logw, &kappa, &background}) operand->load(engine.kernels(), program, params);
  if (points_.shards() == 1) return;
  program.copy(positions_.on_host(), positions_.on_device());
  const auto& pipeline =
      engine.kernels().get(kernels::Gather::name, engine.row_group(points_.quads()), {}, points_.storage());
  const auto across = engine.device().capabilities().max_groups;
  const std::uint64_t count = std::uint64_t{capacity_} * k_;
  const auto x = static_cast<std::uint32_t>(std::min<std::uint64_t>(count, across));
  const auto y = static_cast<std::uint32_t>((count + x - 1) / x);
  for (std::uint32_t shard = 0; shard < points_.shards(); ++shard) {
    const kernels::Gather push{points_.quads(), k_, points_.shard_begin(shard), points_.shard_end(shard), 0};
    program.kernel(pipeline, {params, named.on_device(), points_.shard(shard), gathered_}, push, x, y);
  }
}

}  // namespace ebmvk
