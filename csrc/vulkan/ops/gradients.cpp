// The operations energy_score_backward and accumulate: sums over rows that share a point, always in
// the same order.
#include "vulkan/ops/candidates.h"
#include "vulkan/ops/segments.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>

namespace ebmvk {
namespace {

struct GradientWork {
  Buffer params;
  Table x, grad_energy, grad_score, grad_x, grad_logw, grad_kappa, grad_background;
  Buffer tangent, weights;
  Candidates candidates;
  Program program;
  SegmentSum sum;

  GradientWork(Engine& engine, const Points& points, std::uint32_t capacity, const EnergyArguments& in)
      : params(engine.device(), Buffer::Kind::upload, 16),
        x(engine.device(), capacity, points.d(), 4 * points.quads(), Buffer::Kind::upload),
        grad_energy(engine.device(), capacity, 1, 1, Buffer::Kind::upload),
        grad_score(engine.device(), capacity, points.d(), 4 * points.quads(), Buffer::Kind::upload),
        grad_x(engine.device(), capacity, points.d(), 4 * points.quads(), Buffer::Kind::readback),
        grad_logw(engine.device(), capacity, in.k, in.k, Buffer::Kind::readback),
        grad_kappa(engine.device(), capacity, in.k, in.k, Buffer::Kind::readback),
        grad_background(engine.device(), capacity, 1, 1, Buffer::Kind::readback),
        tangent(engine.device(), Buffer::Kind::device, std::uint64_t{16} * points.quads() * capacity),
        weights(engine.device(), Buffer::Kind::device, std::uint64_t{8} * in.k * capacity),
        candidates(engine, points, capacity, in, 0),
        program(engine.device()),
        sum(engine, weights, x.on_device(), tangent, points.d(), in.k, std::uint64_t{capacity} * in.k) {
    const auto quads = points.quads(), k = in.k;
    for (const auto* table : {&x, &grad_energy, &grad_score}) program.copy(table->on_host(), table->on_device());
    candidates.record(engine, program, params);
    const auto& pipeline = engine.kernels().get(kernels::EnergyGradients::name, engine.row_group(quads),
                                                energy_constants(engine, quads, k, 8), points.storage());
    program.kernel(pipeline,
                   {params, x.on_device(), candidates.rows(), candidates.ids(), candidates.logw.on_device(),
                    candidates.kappa.on_device(), candidates.background.on_device(), grad_energy.on_device(),
                    grad_score.on_device(), grad_x.on_device(), tangent, weights, grad_logw.on_device(),
                    grad_kappa.on_device(), grad_background.on_device()},
                   kernels::EnergyGradients{quads, k}, capacity);
    for (const auto* table : {&grad_x, &grad_logw, &grad_kappa, &grad_background})
      program.copy(table->on_device(), table->on_host());
    program.finish();
  }
};

// A 1 is appended to each row of x, so that the weighted sum ends with the mass.
struct AccumulateWork {
  Table x, weights, one;
  Program load;
  SegmentSum resultant, counts;

  AccumulateWork(Engine& engine, std::uint32_t capacity, std::uint32_t k, std::uint32_t d)
      : x(engine.device(), capacity, d + 1, 4 * quads_of(d + 1), Buffer::Kind::upload),
        weights(engine.device(), capacity, 2 * k, 2 * k, Buffer::Kind::upload),
        one(engine.device(), 1, 1, 4, Buffer::Kind::upload),
        load(engine.device()),
        resultant(engine, weights.on_device(), x.on_device(), x.on_device(), d + 1, k, std::uint64_t{capacity} * k),
        counts(engine, weights.on_device(), one.on_device(), one.on_device(), 1, ~0u, std::uint64_t{capacity} * k) {
    const float unit = 1.0f;
    one.write(&unit, 1);
    for (const auto* table : {&x, &weights, &one}) load.copy(table->on_host(), table->on_device());
    load.finish();
  }

  void write(const AccumulateArguments& in, std::uint64_t begin, std::uint32_t rows) {
    const std::size_t pitch = std::size_t{4} * quads_of(in.d + 1);
    auto* to = x.on_host().as<float>();
    for (std::size_t row = 0; row < rows; ++row, to += pitch) {
      std::copy_n(in.x + (begin + row) * in.d, in.d, to);
      to[in.d] = 1.0f;
      std::fill(to + in.d + 1, to + pitch, 0.0f);
    }
    auto* weight = weights.on_host().as<float>();
    const auto* share = in.responsibilities + begin * in.k;
    for (std::size_t i = 0; i < std::size_t{rows} * in.k; ++i) {
      weight[2 * i] = share[i];
      weight[2 * i + 1] = 0.0f;
    }
  }
};

// The sorted, unique (splat, token) pairs of all entries with a share.
std::vector<Keyed> pairs_of(const AccumulateArguments& in) {
  std::vector<Keyed> pairs;
  for (std::uint64_t i = 0; i < std::uint64_t{in.rows} * in.k; ++i)
    if (in.responsibilities[i] > 0)
      pairs.push_back(keyed(static_cast<std::uint32_t>(in.ids[i]), static_cast<std::uint32_t>(in.tokens[i / in.k])));
  std::sort(pairs.begin(), pairs.end());
  pairs.erase(std::unique(pairs.begin(), pairs.end()), pairs.end());
  return pairs;
}

// The entries of some rows, by splat.
std::vector<Keyed> entries_of(const std::int64_t* ids, std::uint64_t count) {
  std::vector<Keyed> entries(count);
  for (std::uint64_t i = 0; i < count; ++i)
    entries[i] = keyed(static_cast<std::uint32_t>(ids[i]), static_cast<std::uint32_t>(i));
  std::sort(entries.begin(), entries.end());
  return entries;
}

}  // namespace

void Engine::energy_score_backward(const Points& points, const GradientArguments& in, const GradientResults& out) {
  Call call(*this, "energy_score_backward", &points);
  const auto& shape = in.energy;
  const kernels::EnergyGradients push{points.quads(), shape.k};
  const auto slice = units_per_slice(push.name, push.flops(1));
  for (std::uint64_t begin = 0; begin < shape.rows;) {
    const auto capacity = energy_capacity(*this, points, std::min<std::uint64_t>(shape.rows - begin, slice), shape.k,
                                          std::uint64_t{8} * shape.k);
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, shape.rows - begin));
    const auto key = std::string(push.name) + "/" + std::to_string(points.id()) + "/" + std::to_string(capacity) + "/" +
                     std::to_string(shape.k);
    auto& work = workspaces_.get<GradientWork>(
        key, points.id(), [&] { return std::make_shared<GradientWork>(*this, points, capacity, shape); });
    *work.params.as<std::uint32_t>() = rows;
    work.x.write(shape.x.host + begin * shape.d, rows);
    work.grad_energy.write(in.grad_energy + begin, rows);
    work.grad_score.write(in.grad_score + begin * shape.d, rows);
    work.candidates.write(shape, begin, rows);
    call.run(work.program, push.name, push.flops(rows));
    work.grad_x.read(out.x + begin * shape.d, rows);
    work.grad_logw.read(out.logw + begin * shape.k, rows);
    work.grad_kappa.read(out.kappa + begin * shape.k, rows);
    work.grad_background.read(out.background + begin, rows);
    work.sum.add(*this, call, entries_of(shape.ids.host + begin * shape.k, std::uint64_t{rows} * shape.k), out.points);
    begin += rows;
  }
  call.count();
}

Accumulated Engine::accumulate(const AccumulateArguments& in) {
  Call call(*this, "accumulate");
  Accumulated out;
  out.pairs = pairs_of(in);
  out.counts.resize(out.pairs.size());
  const std::uint32_t width = in.d + 1;
  out.sums.resize(checked_product(in.n, width));
  if (in.k == 0) return out;
  const auto row_bytes = std::max(std::uint64_t{16} * quads_of(width), std::uint64_t{8} * in.k);
  const auto fit = std::min(device_.storage_range(), std::uint64_t{64} << 20) / row_bytes;
  if (fit == 0)
    throw Unsupported(std::to_string(in.k) + " candidates do not fit one binding of " +
                      std::to_string(device_.storage_range()) + " bytes");
  auto capacity = power_of_two(std::min<std::uint64_t>(std::max(in.rows, 1u), fit));
  if (capacity > fit) capacity /= 2;
  for (std::uint64_t begin = 0; begin < in.rows; begin += capacity) {
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, in.rows - begin));
    const auto key = "accumulate/" + std::to_string(capacity) + "/" + std::to_string(in.k) + "/" + std::to_string(in.d);
    auto& work = workspaces_.get<AccumulateWork>(
        key, 0, [&] { return std::make_shared<AccumulateWork>(*this, capacity, in.k, in.d); });
    work.write(in, begin, rows);
    call.run(work.load);
    auto entries = entries_of(in.ids + begin * in.k, std::uint64_t{rows} * in.k);
    work.resultant.add(*this, call, entries, out.sums.data());
    entries.clear();
    for (std::uint32_t i = 0; i < rows * in.k; ++i) {
      const auto at = begin * in.k + i;
      if (!(in.responsibilities[at] > 0)) continue;
      const auto pair = keyed(static_cast<std::uint32_t>(in.ids[at]), static_cast<std::uint32_t>(in.tokens[at / in.k]));
      const auto place = std::lower_bound(out.pairs.begin(), out.pairs.end(), pair) - out.pairs.begin();
      entries.push_back(keyed(static_cast<std::uint32_t>(place), i));
    }
    std::sort(entries.begin(), entries.end());
    work.counts.add(*this, call, entries, out.counts.data());
  }
  call.count();
  return out;
}

}  // namespace ebmvk
