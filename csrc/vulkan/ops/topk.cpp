// The operation topk: scores all points and keeps the best. Starts in float16 if reading the points
// is the bottleneck.
#include "vulkan/ops/groups.h"
#include "vulkan/ops/scan.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <numeric>

namespace ebmvk {
namespace {

// Float16 halves the bytes to read but not the arithmetic, which is always in float32. It pays off
// if there are fewer queries than multiply-adds that the device can do while it reads a float.
constexpr std::uint32_t kCoarseQueries = 64;
constexpr std::uint64_t kCoarseSize = std::uint64_t{1} << 21;  // coordinates; smaller stores fit into a cache
constexpr std::uint32_t kCoarseCalls = 8;  // after this many calls rounding, which costs 1.5 scans, has paid for itself
constexpr std::uint32_t kCoarseDimensions = 1u << 16;  // up to here halve.comp's 1 % covers the roundings of its sum

struct ExactWork {
  Scan scan;

  ExactWork(Engine& engine, const Points& points, const ScanShape& shape, const TopkArguments& in,
            const TopkResults& to, std::uint64_t begin)
      : scan(engine, points, shape, nullptr, in, to, begin) {
    for (const auto* best : {&scan.best_scores, &scan.best_ids})
      best->store(engine.kernels(), scan.program, scan.params());
    scan.program.finish();
  }
};

struct CoarseWork {
  Scan scan;
  Buffer exact;  // float32 scores of the scan's best points
  Operand scores, ids;
  Table unproved;

  CoarseWork(Engine& engine, const Points& points, const Coarse& coarse, const ScanShape& shape,
             const TopkArguments& in, const TopkResults& to, std::uint64_t begin)
      : scan(engine, points, shape, &coarse, in, {}, begin),
        exact(engine.device(), Buffer::Kind::device, checked_product(shape.capacity, std::uint64_t{4} * shape.k)),
        scores(engine.device(), to.scores.from(begin), shape.capacity, in.k, in.k, Buffer::Kind::readback),
        ids(engine.device(), to.ids.from(begin), shape.capacity, in.k, in.k, Buffer::Kind::readback),
        unproved(engine.device(), shape.capacity, 1, 1, Buffer::Kind::readback) {
    auto& program = scan.program;
    constexpr auto group = kernels::Rescore::group;
    const auto& pipeline = engine.kernels().get(kernels::Rescore::name, group, {});
    for (std::uint32_t shard = 0; shard < points.shards(); ++shard)
      program.kernel(
          pipeline,
          {scan.params(), scan.queries.on_device(), points.shard(shard), scan.scale.on_device(), scan.bias.on_device(),
           scan.best_ids.on_device(), exact},
          kernels::Rescore{points.quads(), shape.k, points.shard_begin(shard), points.shard_end(shard), shape.scaled},
          (shape.k + group - 1) / group, shape.capacity);
    program.kernel(engine.kernels().get(kernels::ProveTopk::name, select_group(engine.device().capabilities()),
                                        {power_of_two(shape.k)}),
                   {scan.params(), exact, scan.best_ids.on_device(), scan.best_scores.on_device(), scores.on_device(),
                    ids.on_device(), unproved.on_device()},
                   kernels::ProveTopk{in.k, shape.k, shape.k == points.n()}, shape.capacity);
    for (const auto* result : {&scores, &ids}) result->store(engine.kernels(), program, scan.params());
    program.copy(unproved.on_device(), unproved.on_host());
    program.finish();
  }

  // Counts the rows, among the first `rows`, for which a point that was not rescored may belong to the
  // best.
  std::uint32_t count_unproved(std::uint32_t rows) const {
    const auto* flags = unproved.on_host().as<std::uint32_t>();
    return std::accumulate(flags, flags + rows, 0u);
  }
};

std::string scan_key(const char* kind, Engine& engine, const Points& points, const ScanShape& shape) {
  return std::string(kind) + "/" + std::to_string(points.id()) + "/" + std::to_string(shape.capacity) + "/" +
         std::to_string(shape.rows) + "/" + std::to_string(shape.k) + (shape.scaled ? "/scaled/" : "/plain/") +
         std::to_string(static_cast<int>(engine.scoring()));
}

std::string places_of(const TopkArguments& in, const TopkResults& to, std::uint64_t begin) {
  return keys_of({in.queries.from(begin), in.scale.from(0), in.bias.from(0)},
                 {to.scores.from(begin), to.ids.from(begin)});
}

}  // namespace

std::uint32_t rescored(std::uint32_t k, std::uint32_t n) { return std::min(n, k + std::max(16u, k / 4)); }

bool Engine::use_coarse(const Points& points, const TopkArguments& in) const {
  const auto kept = rescored(in.k, points.n());
  if (points.storage() != Storage::float32 || points.d() > kCoarseDimensions || !selectable(device_, kept))
    return false;
  if (coarse_) return *coarse_;
  return device_.capabilities().type != "cpu" && in.rows < kCoarseQueries && points.n() >= 16 * kept &&
         std::uint64_t{points.n()} * points.d() >= kCoarseSize;
}

void Engine::topk(const Points& points, const TopkArguments& in, const TopkResults& out) {
  Call call(*this, "topk", &points);
  if (!selectable(device_, in.k))
    throw Unsupported("k = " + std::to_string(in.k) + " needs more workgroup memory than the device has, " +
                      std::to_string(device_.capabilities().max_shared_bytes) + " bytes");
  const bool forced = coarse_.has_value();
  const auto* coarse = use_coarse(points, in) ? points.coarse(forced ? 1 : kCoarseCalls, forced) : nullptr;
  if (coarse)
    coarse_topk(call, points, *coarse, in, out);
  else
    exact_topk(call, points, in, out, 0, in.rows);
  call.count();
}

void Engine::exact_topk(Call& call, const Points& points, const TopkArguments& in, const TopkResults& to,
                        std::uint64_t begin, std::uint64_t end) {
  while (begin < end) {
    const auto shape = scan_shape(*this, points, end - begin, in.k, scaled(in));
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(shape.capacity, end - begin));
    auto& work =
        workspaces_.get<ExactWork>(scan_key("topk", *this, points, shape) + places_of(in, to, begin), points.id(),
                                   [&] { return std::make_shared<ExactWork>(*this, points, shape, in, to, begin); });
    work.scan.write(in, begin, rows);
    work.scan.run(call, rows);
    work.scan.best_scores.read(to.scores, begin, rows);
    work.scan.best_ids.read(to.ids, begin, rows);
    begin += rows;
  }
}

// If a row isn't proved, all rows of its scan are scanned again, because reading the points takes most
// of the time, and takes as long for one row.
void Engine::coarse_topk(Call& call, const Points& points, const Coarse& coarse, const TopkArguments& in,
                         const TopkResults& to) {
  const auto kept = rescored(in.k, points.n());
  for (std::uint64_t begin = 0; begin < in.rows;) {
    const auto shape = scan_shape(*this, coarse.halves, in.rows - begin, kept, scaled(in));
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(shape.capacity, in.rows - begin));
    auto& work = workspaces_.get<CoarseWork>(
        scan_key("coarse", *this, points, shape) + "/" + std::to_string(in.k) + places_of(in, to, begin), points.id(),
        [&] { return std::make_shared<CoarseWork>(*this, points, coarse, shape, in, to, begin); });
    work.scan.write(in, begin, rows);
    work.scan.run(call, rows);
    work.scores.read(to.scores, begin, rows);
    work.ids.read(to.ids, begin, rows);
    const auto unproved = work.count_unproved(rows);
    coarse_count_.rows += rows;
    coarse_count_.unproved += unproved;
    if (unproved) exact_topk(call, points, in, to, begin, begin + rows);
    begin += rows;
  }
}

}  // namespace ebmvk
