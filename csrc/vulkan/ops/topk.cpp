// The operation topk: scores all points and keeps the best. Starts in float16 if reading the points
// is the bottleneck.
#include "vulkan/ops/scan.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>
#include <utility>

namespace ebmvk {
namespace {

// Float16 halves the bytes to read but not the arithmetic, which is always in float32. It pays off
// if there are fewer queries than the device has multiply-adds per float that it reads.
constexpr std::uint32_t kCoarseQueries = 64;
constexpr std::uint64_t kCoarseSize = std::uint64_t{1} << 21;  // coordinates; fewer fit into a cache
constexpr std::uint32_t kCoarseCalls = 8;  // after this many calls rounding, which costs 1.5 scans, has paid for itself
constexpr std::uint32_t kCoarseDimensions = 1u << 16;  // up to here halve.comp's 1 % covers the roundings of its sum

// The number of points to rescore in float32. At d = 640, the 80th best of 50,000 uniform points is
// ten bounds below the 64th.
std::uint32_t rescored(std::uint32_t k, std::uint32_t n) { return std::min(n, k + std::max(16u, k / 4)); }

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
  Table scores;  // float32 scores of the scan's best points

  CoarseWork(Engine& engine, const Points& points, const Coarse& coarse, const ScanShape& shape,
             const TopkArguments& in)
      : scan(engine, points, shape, &coarse, in, {}, 0),
        scores(engine.device(), shape.capacity, shape.k, shape.k, Buffer::Kind::readback) {
    constexpr std::uint32_t group = 64;
    const auto& pipeline = engine.kernels().get(kernels::Rescore::name, group, {});
    for (std::uint32_t shard = 0; shard < points.shards(); ++shard)
      scan.program.kernel(
          pipeline,
          {scan.params(), scan.queries.on_device(), points.shard(shard), scan.scale.on_device(), scan.bias.on_device(),
           scan.best_ids.on_device(), scores.on_device()},
          kernels::Rescore{points.quads(), shape.k, points.shard_begin(shard), points.shard_end(shard), shape.scaled},
          (shape.k + group - 1) / group, shape.capacity);
    for (const auto* best : {&scan.best_scores, &scan.best_ids})
      best->store(engine.kernels(), scan.program, scan.params());
    scan.program.copy(scores.on_device(), scores.on_host());
    scan.program.finish();
  }

  // The k best of a row by float32 score, ties by lower id. Returns false and writes nothing if a
  // point that was not rescored might be among them; such a point scores at most the bound of the
  // last one rescored.
  bool best_of(std::uint32_t row, std::uint32_t k, bool all, float* to_scores, std::int64_t* to_ids) const {
    const auto kept = scan.shape.k;
    const auto* score = scores.on_host().as<float>() + std::size_t{row} * kept;
    const auto* id = scan.best_ids.table().on_host().as<std::uint32_t>() + std::size_t{row} * kept;
    std::vector<std::pair<float, std::uint32_t>> found(kept);
    for (std::uint32_t i = 0; i < kept; ++i) {
      if (score[i] != score[i]) return false;
      found[i] = {score[i] == 0 ? 0.0f : score[i], id[i]};  // avoid -0, as select_topk.comp does
    }
    std::partial_sort(found.begin(), found.begin() + k, found.end(), [](const auto& a, const auto& b) {
      return a.first > b.first || (a.first == b.first && a.second < b.second);
    });
    const float bound = scan.best_scores.table().on_host().as<float>()[std::size_t{row} * kept + kept - 1];
    if (!all && !(found[k - 1].first > bound)) return false;
    for (std::uint32_t i = 0; i < k; ++i) std::tie(to_scores[i], to_ids[i]) = found[i];
    return true;
  }
};

std::string scan_key(const char* kind, Engine& engine, const Points& points, const ScanShape& shape) {
  return std::string(kind) + "/" + std::to_string(points.id()) + "/" + std::to_string(shape.capacity) + "/" +
         std::to_string(shape.rows) + "/" + std::to_string(shape.k) + (shape.scaled ? "/scaled/" : "/plain/") +
         std::to_string(static_cast<int>(engine.scoring()));
}

}  // namespace

bool Engine::use_coarse(const Points& points, const TopkArguments& in) const {
  const auto kept = rescored(in.k, points.n());
  // Which rows float16 proves is decided on the host.
  if (in.queries.tensor || in.scale.tensor || in.bias.tensor) return false;
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
  if (coarse) {
    const auto unproved = coarse_topk(call, points, *coarse, in, out.scores.host, out.ids.host);
    coarse_count_.rows += in.rows;
    coarse_count_.unproved += unproved.size();
    if (!unproved.empty()) {
      std::vector<float> queries(unproved.size() * in.d), best(unproved.size() * in.k);
      std::vector<std::int64_t> best_ids(best.size());
      for (std::size_t i = 0; i < unproved.size(); ++i)
        std::copy_n(in.queries.host + std::size_t{unproved[i]} * in.d, in.d, queries.begin() + i * in.d);
      auto again = in;
      again.rows = static_cast<std::uint32_t>(unproved.size());
      again.queries.host = queries.data();
      exact_topk(call, points, again, {{best.data(), nullptr}, {best_ids.data(), nullptr}});
      for (std::size_t i = 0; i < unproved.size(); ++i) {
        std::copy_n(best.begin() + i * in.k, in.k, out.scores.host + std::size_t{unproved[i]} * in.k);
        std::copy_n(best_ids.begin() + i * in.k, in.k, out.ids.host + std::size_t{unproved[i]} * in.k);
      }
    }
  } else {
    exact_topk(call, points, in, out);
  }
  call.count();
}

void Engine::exact_topk(Call& call, const Points& points, const TopkArguments& in, const TopkResults& out) {
  for (std::uint64_t begin = 0; begin < in.rows;) {
    const auto shape = scan_shape(*this, points, in.rows - begin, in.k, scaled(in));
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(shape.capacity, in.rows - begin));
    const auto keys = keys_of({in.queries.from(begin), in.scale.from(0), in.bias.from(0)},
                              {out.scores.from(begin), out.ids.from(begin)});
    auto& work = workspaces_.get<ExactWork>(scan_key("topk", *this, points, shape) + keys, points.id(), [&] {
      return std::make_shared<ExactWork>(*this, points, shape, in, out, begin);
    });
    work.scan.write(in, begin, rows);
    work.scan.run(call, rows);
    work.scan.best_scores.read(out.scores, begin, rows);
    work.scan.best_ids.read(out.ids, begin, rows);
    begin += rows;
  }
}

std::vector<std::uint32_t> Engine::coarse_topk(Call& call, const Points& points, const Coarse& coarse,
                                               const TopkArguments& in, float* scores, std::int64_t* ids) {
  std::vector<std::uint32_t> unproved;
  const auto kept = rescored(in.k, points.n());
  for (std::uint64_t begin = 0; begin < in.rows;) {
    const auto shape = scan_shape(*this, coarse.halves, in.rows - begin, kept, scaled(in));
    const auto rows = static_cast<std::uint32_t>(std::min<std::uint64_t>(shape.capacity, in.rows - begin));
    auto& work = workspaces_.get<CoarseWork>(scan_key("coarse", *this, points, shape), points.id(), [&] {
      return std::make_shared<CoarseWork>(*this, points, coarse, shape, in);
    });
    work.scan.write(in, begin, rows);
    work.scan.run(call, rows);
    for (std::uint32_t row = 0; row < rows; ++row)
      if (const auto at = (begin + row) * in.k; !work.best_of(row, in.k, kept == points.n(), scores + at, ids + at))
        unproved.push_back(static_cast<std::uint32_t>(begin + row));
    begin += rows;
  }
  return unproved;
}

}  // namespace ebmvk
