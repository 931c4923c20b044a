// topk: scores of a block of queries and points, merged into the best so far, block after block.
#include "engine_vulkan.h"

#include "vulkan_errors.h"

#include <algorithm>

namespace ebmvk {
namespace {

constexpr std::uint32_t kColumns = 1u << 16;                    // points per block at most
constexpr std::uint64_t kScoreBytes = std::uint64_t{64} << 20;  // of a block's scores at most

// A scoring kernel with its tile: rows and columns that one workgroup covers.
struct Tiling {
  const char* kernel;
  std::uint32_t group, result_rows, result_columns, rows, columns;
};

Tiling choose_tiling(Engine& engine, std::uint32_t rows) {
  if (engine.scoring() == Scoring::direct) {
    const auto group = std::clamp(engine.device().capabilities().subgroup_size, 8u, 128u);
    return {kernels::ScoreDirect::name, group, 4, 4, 4, 4 * group};
  }
  if (rows >= 64) return {kernels::ScoreTiled::name, 256, 8, 8, 128, 128};
  return {kernels::ScoreTiled::name, 256, 2, 8, 32, 128};
}

struct TopkWork {
  Buffer params;
  Table queries, scale, bias, best_scores, best_ids;
  Buffer scores;
  Program load, store;
  std::vector<std::unique_ptr<Program>> blocks;  // one for each shard

  TopkWork(Engine& engine, const Points& points, std::uint32_t capacity, std::uint32_t columns, std::uint32_t k,
           bool scaled)
      : params(engine.device(), Buffer::Kind::upload, 32),
        queries(engine.device(), capacity, points.d(), 4 * points.quads(), Buffer::Kind::upload),
        scale(engine.device(), 1, scaled ? points.n() : 4, scaled ? points.n() : 4, Buffer::Kind::upload),
        bias(engine.device(), 1, scaled ? points.n() : 4, scaled ? points.n() : 4, Buffer::Kind::upload),
        best_scores(engine.device(), capacity, k, k, Buffer::Kind::readback),
        best_ids(engine.device(), capacity, k, k, Buffer::Kind::readback),
        scores(engine.device(), Buffer::Kind::device, checked_product(std::uint64_t{4} * capacity, columns)),
        load(engine.device()),
        store(engine.device()) {
    for (const auto* table : {&queries, &scale, &bias}) load.copy(table->on_host(), table->on_device());
    load.finish();
    for (std::uint32_t shard = 0; shard < points.shards(); ++shard)
      blocks.push_back(record_block(engine, points, shard, capacity, columns, k, scaled));
    for (const auto* table : {&best_scores, &best_ids}) store.copy(table->on_device(), table->on_host());
    store.finish();
  }

  std::unique_ptr<Program> record_block(Engine& engine, const Points& points, std::uint32_t shard,
                                        std::uint32_t capacity, std::uint32_t columns, std::uint32_t k, bool scaled) {
    auto program = std::make_unique<Program>(engine.device());
    const auto tiling = choose_tiling(engine, capacity);
    program->kernel(engine.kernels().get(tiling.kernel, tiling.group, {tiling.result_rows, tiling.result_columns}),
                    {params, queries.on_device(), points.shard(shard), scale.on_device(), bias.on_device(), scores},
                    kernels::ScoreTiled{points.quads(), columns, scaled},
                    (columns + tiling.columns - 1) / tiling.columns, (capacity + tiling.rows - 1) / tiling.rows);
    const auto& device = engine.device().capabilities();
    const auto group = device.type == "cpu" ? 8u : std::min(256u, device.max_group_size);
    program->kernel(engine.kernels().get(kernels::SelectTopk::name, group, {power_of_two(k)}),
                    {params, scores, best_scores.on_device(), best_ids.on_device()}, kernels::SelectTopk{k, columns},
                    capacity);
    program->finish();
    return program;
  }

  void write_points(const Points& points, const TopkArguments& in) {
    if (!in.scale && !in.bias) return;
    const auto fill = [&](Table& table, const float* from, float otherwise) {
      if (from)
        table.write(from, 1);
      else
        std::fill_n(table.on_host().as<float>(), points.n(), otherwise);
    };
    fill(scale, in.scale, 1.0f);
    fill(bias, in.bias, 0.0f);
  }
};

}  // namespace

void Engine::topk(const Points& points, const TopkArguments& in, float* scores, std::int64_t* ids) {
  Call call(*this, "topk", &points);
  const bool scaled = in.scale || in.bias;
  const std::uint64_t shared = std::uint64_t{8} * power_of_two(in.k) + 2048;
  if (shared > device_.capabilities().max_shared_bytes)
    throw Unsupported("k = " + std::to_string(in.k) + " needs " + std::to_string(shared) +
                      " bytes of workgroup memory: the device has " +
                      std::to_string(device_.capabilities().max_shared_bytes));
  const auto columns = std::min({kColumns, points.shard_end(0), points.n()});
  const kernels::ScoreTiled cost{points.quads(), columns, scaled};
  const auto most = std::min<std::uint64_t>(
      {units_per_slice("topk", cost.flops(1)), kScoreBytes / (4 * std::uint64_t{columns}),
       device_.storage_range() / std::max<std::uint64_t>(4 * std::uint64_t{columns}, 16 * points.quads()), 4096});
  for (std::uint64_t begin = 0; begin < in.rows;) {
    const auto wanted = std::max<std::uint64_t>(std::min<std::uint64_t>(most, in.rows - begin), 1);
    auto capacity = power_of_two(wanted);
    if (capacity > most && capacity > 1) capacity /= 2;
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(capacity, in.rows - begin));
    const auto key = "topk/" + std::to_string(points.id()) + "/" + std::to_string(capacity) + "/" +
                     std::to_string(in.k) + (scaled ? "/scaled/" : "/plain/") +
                     std::to_string(static_cast<int>(scoring()));
    auto& work = workspaces_.get<TopkWork>(
        key, points.id(), [&] { return std::make_shared<TopkWork>(*this, points, capacity, columns, in.k, scaled); });
    work.queries.write(in.queries + begin * in.d, rows);
    work.write_points(points, in);
    call.run(work.load);
    auto* params = work.params.as<std::uint32_t>();
    params[0] = rows;
    params[4] = 0;
    for (std::uint32_t shard = 0; shard < points.shards(); ++shard)
      for (auto first = points.shard_begin(shard); first < points.shard_end(shard); first += columns) {
        params[1] = std::min(columns, points.shard_end(shard) - first);
        params[2] = first - points.shard_begin(shard);
        params[3] = first;
        call.run(*work.blocks[shard], "topk", cost.flops(rows) * params[1] / columns);
        params[4] = std::min(in.k, params[4] + params[1]);
      }
    call.run(work.store);
    work.best_scores.read(scores + begin * in.k, rows);
    const auto* found = work.best_ids.on_host().as<std::uint32_t>();
    std::copy_n(found, std::size_t{rows} * in.k, ids + begin * in.k);
    begin += rows;
  }
  call.count();
}

}  // namespace ebmvk
