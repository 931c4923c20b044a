#include "vulkan/ops/scan.h"

#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace ebmvk {
namespace {

constexpr std::uint32_t kColumns = 1u << 16;  // most points per block
// The same if loops are limited: with ties, select_topk.comp passes nine times through its eighth
// of a row.
constexpr std::uint32_t kShortColumns = 1u << 15;
constexpr std::uint64_t kScoreBytes = std::uint64_t{64} << 20;  // most bytes of a block's scores

// At least |q|, with room for products too small for a float. Infinite if sums might overflow, so
// that nothing counts as proved (store_score.glsl).
float norm_above(const float* query, std::uint32_t d) {
  double sum = 0;
  for (std::uint32_t i = 0; i < d; ++i) sum += static_cast<double>(query[i]) * query[i];
  const double norm = std::sqrt(sum) * (1 + 1e-6) + 1e-30;
  return norm < 1e30 ? static_cast<float>(norm) : std::numeric_limits<float>::infinity();
}

}  // namespace

bool selectable(const Device& device, std::uint32_t k) {
  return std::uint64_t{8} * power_of_two(k) + 2048 <= device.capabilities().max_shared_bytes;
}

ScanShape scan_shape(Engine& engine, const Rows& points, std::uint64_t rows, std::uint32_t k, bool scaled) {
  const auto limited = engine.device().capabilities().loop_rounds < 0xffffffffu;
  const auto columns = std::min({limited ? kShortColumns : kColumns, points.shard_end(0), points.n()});
  const kernels::ScoreTiled cost{points.quads(), columns, scaled, 0};
  const auto most = std::min<std::uint64_t>(
      {engine.units_per_slice("topk", cost.flops(1)), kScoreBytes / (4 * std::uint64_t{columns}),
       engine.device().storage_range() / std::max<std::uint64_t>(4 * std::uint64_t{columns}, 16 * points.quads()),
       4096});
  const auto wanted = std::max<std::uint64_t>(std::min(most, rows), 1);
  auto capacity = power_of_two(wanted);
  if (capacity > most && capacity > 1) capacity /= 2;
  return {capacity, columns, k, scaled};
}

Scan::Scan(Engine& engine, const Rows& points, const ScanShape& of, const Coarse* coarse)
    : shape(of),
      params(engine.device(), Buffer::Kind::upload, 32),
      queries(engine.device(), of.capacity, points.d(), 4 * points.quads(), Buffer::Kind::upload),
      scale(engine.device(), 1, of.scaled ? points.n() : 4, of.scaled ? points.n() : 4, Buffer::Kind::upload),
      bias(engine.device(), 1, of.scaled ? points.n() : 4, of.scaled ? points.n() : 4, Buffer::Kind::upload),
      norms(engine.device(), coarse ? of.capacity : 1, 1, 1, Buffer::Kind::upload),
      best_scores(engine.device(), of.capacity, of.k, of.k, Buffer::Kind::readback),
      best_ids(engine.device(), of.capacity, of.k, of.k, Buffer::Kind::readback),
      points_(coarse ? coarse->halves : points),
      bounded_(coarse != nullptr),
      scores_(engine.device(), Buffer::Kind::device, checked_product(std::uint64_t{4} * of.capacity, of.columns)),
      load_(engine.device()) {
  for (const auto* table : {&queries, &scale, &bias, &norms}) load_.copy(table->on_host(), table->on_device());
  load_.finish();
  for (std::uint32_t shard = 0; shard < points_.shards(); ++shard)
    blocks_.push_back(record_block(engine, shard, coarse ? &coarse->radius : nullptr));
}

std::unique_ptr<Program> Scan::record_block(Engine& engine, std::uint32_t shard, const Buffer* radius) {
  auto program = std::make_unique<Program>(engine.device());
  const auto& device = engine.device().capabilities();
  const auto tiling = choose_tiling(device, engine.scoring(), shape.capacity);
  program->kernel(engine.kernels().get(tiling.kernel, tiling.group, tiling.constants(), points_.storage()),
                  {params, queries.on_device(), points_.shard(shard), scale.on_device(), bias.on_device(),
                   norms.on_device(), radius ? *radius : norms.on_device(), scores_},
                  kernels::ScoreTiled{points_.quads(), shape.columns, shape.scaled, radius != nullptr},
                  (shape.columns + tiling.columns - 1) / tiling.columns,
                  (shape.capacity + tiling.rows - 1) / tiling.rows);
  const auto group = device.type == "cpu" ? 8u : std::min(256u, device.max_group_size);
  program->kernel(engine.kernels().get(kernels::SelectTopk::name, group, {power_of_two(shape.k)}),
                  {params, scores_, best_scores.on_device(), best_ids.on_device()},
                  kernels::SelectTopk{shape.k, shape.columns}, shape.capacity);
  program->finish();
  return program;
}

void Scan::write(const TopkArguments& in, std::uint64_t begin, std::uint32_t rows) {
  queries.write(in.queries + begin * in.d, rows);
  if (bounded_)
    for (std::uint32_t row = 0; row < rows; ++row)
      norms.on_host().as<float>()[row] = norm_above(in.queries + (begin + row) * in.d, in.d);
  if (!shape.scaled) return;
  const auto fill = [&](Table& table, const float* from, float otherwise) {
    if (from)
      table.write(from, 1);
    else
      std::fill_n(table.on_host().as<float>(), points_.n(), otherwise);
  };
  fill(scale, in.scale, 1.0f);
  fill(bias, in.bias, 0.0f);
}

void Scan::run(Engine::Call& call, std::uint32_t rows) {
  call.run(load_);
  const kernels::ScoreTiled cost{points_.quads(), shape.columns, shape.scaled, 0};
  auto& with = *params.as<kernels::ScoreTiled::Params>();
  with.rows = rows;
  with.kept = 0;
  for (std::uint32_t shard = 0; shard < points_.shards(); ++shard)
    for (auto first = points_.shard_begin(shard); first < points_.shard_end(shard); first += shape.columns) {
      with.columns = std::min(shape.columns, points_.shard_end(shard) - first);
      with.first = first - points_.shard_begin(shard);
      with.first_id = first;
      call.run(*blocks_[shard], "topk", cost.flops(rows) * with.columns / shape.columns);
      with.kept = std::min(shape.k, with.kept + with.columns);
    }
}

}  // namespace ebmvk
