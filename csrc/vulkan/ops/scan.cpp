#include "vulkan/ops/scan.h"

#include "vulkan/ops/groups.h"
#include "vulkan/runtime/errors.h"

#include <algorithm>

namespace ebmvk {
namespace {

constexpr std::uint32_t kColumns = 1u << 16;  // most points per block
// The same if the driver limits loops: with ties, an invocation of select_topk.comp passes nine times
// through an eighth of a list.
constexpr std::uint32_t kShortColumns = 1u << 15;
// A block with all queries has at least this many points, if the store has as many.
constexpr std::uint32_t kFewColumns = 1u << 13;
// The first block has this many points for each of the k best. All its scores go through the
// selection; about 1 / 32 of the scores of the next block pass the bar.
constexpr std::uint32_t kFirstColumns = 32;
constexpr std::uint32_t kFirstBest = 64;                       // a smaller k counts as this many
constexpr std::uint32_t kSorted = 512;                         // scores that are sorted without a search
constexpr std::uint64_t kListBytes = std::uint64_t{64} << 20;  // most bytes of a block's scores in lists
constexpr std::uint64_t kScoreBytes = 8;                       // a score and its id
constexpr std::uint64_t kMostRows = 4096;                      // most queries of a plan
constexpr std::uint64_t kMostBlocks = 256;                     // most blocks of a plan with more than one block of rows
// Small blocks share a section, whose cost doesn't depend on its size. A plan submits whole sections,
// so they are smaller than a slice.
constexpr std::uint64_t kSectionsPerSlice = 4;
constexpr std::uint64_t kParamBytes = 32;
constexpr std::uint64_t kTileRows = 4;   // fewer rows take score_direct.comp as long
constexpr std::uint64_t kManyRows = 64;  // from here on the number of rows doesn't change the speed

// The name under which the kernels' speed is learned. Only the work of scoring is counted, but what
// selection adds depends on d and k, and the speed of scoring on the number of rows.
std::string speed_name(const Rows& points, std::uint64_t rows, std::uint32_t k) {
  return "topk/" + std::to_string(points.quads()) + "/" + std::to_string(k) + "/" +
         std::to_string(power_of_two(std::clamp<std::uint64_t>(rows, 1, kManyRows)));
}

// The least power of two that is at least `wanted`, or the greatest that is at most `most`. At least 1.
std::uint32_t fitting_power(std::uint64_t wanted, std::uint64_t most) {
  const auto power = power_of_two(std::max<std::uint64_t>(std::min(most, wanted), 1));
  return power > most && power > 1 ? power / 2 : power;
}

// The number of scores in a list: the best so far, and all scores of a block.
std::uint32_t list_room(const ScanShape& shape) { return shape.k + shape.columns; }

}  // namespace

std::vector<std::uint32_t> select_constants(const Capabilities& device, std::uint32_t k) {
  // A sort has many barriers, which a processor emulates.
  return {device.type == "cpu" ? power_of_two(k) : std::max(power_of_two(k), kSorted)};
}

bool selectable(const Device& device, std::uint32_t k) {
  const auto& limits = device.capabilities();
  return std::uint64_t{8} * select_constants(limits, k)[0] + 2048 <= limits.max_shared_bytes;
}

ScanShape scan_shape(Engine& engine, const Rows& points, std::uint64_t rows, std::uint32_t k, bool scaled) {
  const auto limited = engine.device().capabilities().loop_rounds < 0xffffffffu;
  const auto most_columns = std::min({limited ? kShortColumns : kColumns, points.shard_end(0), points.n()});
  const std::uint64_t range = engine.device().storage_range();
  const auto fewest = std::min(kFewColumns, most_columns);
  const auto most_rows =
      std::min<std::uint64_t>({kListBytes / (kScoreBytes * fewest), range / (kScoreBytes * (std::uint64_t{fewest} + k)),
                               range / (std::uint64_t{16} * points.quads()), kMostRows});
  const auto list_bytes = kScoreBytes * fitting_power(rows, most_rows);  // of a score in every list
  const auto columns = static_cast<std::uint32_t>(std::min<std::uint64_t>(
      {most_columns, kListBytes / list_bytes, std::max<std::uint64_t>(range / list_bytes, k + 1) - k}));
  const kernels::ScoreTiled cost{points.quads(), columns, scaled, 0};
  const auto speed = speed_name(points, rows, k);
  const auto slice = std::max(engine.units_per_slice(speed, cost.flops(1)), kTileRows);
  const auto block = fitting_power(rows, std::min(most_rows, slice));
  const auto sample = kFirstColumns * std::max(power_of_two(k), kFirstBest);
  const auto first = points.n() > std::uint64_t{2} * sample ? std::min(sample, columns) : columns;
  if (!engine.measured(speed)) return {block, block, columns, first, k, scaled, speed};
  const std::uint64_t across = (std::uint64_t{points.n()} + columns - 1) / columns + (first < columns);
  const auto most =
      std::min<std::uint64_t>({kMostRows, range / std::max<std::uint64_t>(4 * std::uint64_t{k}, 16 * points.quads()),
                               std::max<std::uint64_t>(kMostBlocks / across, 1) * block});
  return {std::max(block, fitting_power(rows, most)), block, columns, first, k, scaled, speed};
}

Scan::Scan(Engine& engine, const Rows& points, const ScanShape& of, const Coarse* coarse, const TopkArguments& in,
           const TopkResults& to, std::uint64_t begin)
    : shape(of),
      queries(engine.device(), in.queries.from(begin), of.capacity, points.d(), 4 * points.quads(),
              Buffer::Kind::upload),
      scale(engine.device(), in.scale.from(0), of.scaled ? points.n() : 4, 1, 1, Buffer::Kind::upload),
      bias(engine.device(), in.bias.from(0), of.scaled ? points.n() : 4, 1, 1, Buffer::Kind::upload),
      best_scores(engine.device(), to.scores.from(begin), of.capacity, of.k, of.k, Buffer::Kind::readback),
      best_ids(engine.device(), to.ids.from(begin), of.capacity, of.k, of.k, Buffer::Kind::readback),
      program(engine.device()),
      points_(coarse ? coarse->halves : points),
      norms_(engine.device(), Buffer::Kind::device, std::uint64_t{4} * (coarse ? of.capacity : 4)),
      bars_(engine.device(), Buffer::Kind::device, std::uint64_t{4} * of.capacity),
      counts_(engine.device(), Buffer::Kind::device, std::uint64_t{4} * of.capacity),
      lists_(engine.device(), Buffer::Kind::device, checked_product(kScoreBytes * of.rows, list_room(of))) {
  const kernels::ScoreTiled cost{points_.quads(), shape.columns, shape.scaled, 0};
  blocks_ = divide(engine.units_per_slice(shape.speed, cost.flops(1)) / kSectionsPerSlice);
  params_ = Buffer(engine.device(), Buffer::Kind::upload, kSlotBytes * (blocks_.size() + 1));
  for (const auto* operand : {&queries, &scale, &bias}) operand->load(engine.kernels(), program, params());
  if (coarse)
    program.kernel(engine.kernels().get(kernels::RowNorms::name, engine.row_group(points.quads()), {}),
                   {params(), queries.on_device(), norms_}, kernels::RowNorms{points.quads()}, shape.capacity);
  for (const auto* state : {&bars_, &counts_}) program.fill(*state, 0);
  for (std::size_t i = 0; i < blocks_.size(); ++i) {
    if (i > 0 && blocks_[i].section != blocks_[i - 1].section) program.cut();
    record(engine, blocks_[i], i, coarse ? &coarse->radius : nullptr);
  }
}

// The blocks of all points for some rows, then for the next rows, and so on. Sections have at most
// `section_rows` rows of a block.
std::vector<Scan::Block> Scan::divide(std::uint64_t section_rows) const {
  std::vector<Block> blocks;
  std::uint32_t section = 0;
  std::uint64_t in_section = 0;
  for (std::uint32_t row = 0; row < shape.capacity; row += shape.rows)
    for (std::uint32_t shard = 0; shard < points_.shards(); ++shard)
      for (std::uint32_t first = points_.shard_begin(shard), next = 0; first < points_.shard_end(shard); first = next) {
        next = std::min(first < shape.first ? shape.first : first + shape.columns, points_.shard_end(shard));
        if (in_section > 0 && in_section + shape.rows > section_rows) {
          ++section;
          in_section = 0;
        }
        in_section += shape.rows;
        blocks.push_back({section, shard, row, first, next - first});
      }
  return blocks;
}

View Scan::slot(std::size_t number) const { return {params_, kSlotBytes * number, kParamBytes}; }

View Scan::params() const { return slot(blocks_.size()); }

void Scan::record(Engine& engine, const Block& block, std::size_t number, const Buffer* radius) {
  const auto& device = engine.device().capabilities();
  const auto tiling = choose_tiling(device, engine.scoring(), shape.rows);
  program.kernel(engine.kernels().get(tiling.kernel, tiling.group, tiling.constants(), points_.storage()),
                 {slot(number), queries.on_device(), points_.shard(block.shard), scale.on_device(), bias.on_device(),
                  norms_, radius ? *radius : norms_, bars_, counts_, lists_},
                 kernels::ScoreTiled{points_.quads(), list_room(shape), shape.scaled, radius != nullptr},
                 (shape.rows + tiling.rows - 1) / tiling.rows, (block.points + tiling.columns - 1) / tiling.columns);
  program.kernel(
      engine.kernels().get(kernels::SelectTopk::name, select_group(device), select_constants(device, shape.k)),
      {slot(number), lists_, bars_, counts_, best_scores.on_device(), best_ids.on_device()},
      kernels::SelectTopk{shape.k, list_room(shape)}, shape.rows);
}

void Scan::write(const TopkArguments& in, std::uint64_t begin, std::uint32_t rows) {
  queries.write(in.queries, begin, rows);
  if (!shape.scaled) return;
  const auto fill = [&](Operand& operand, const Argument<float>& weights, float otherwise) {
    if (weights.given())
      operand.write(weights, 0, points_.n());
    else
      std::fill_n(operand.table().on_host().as<float>(), points_.n(), otherwise);
  };
  fill(scale, in.scale, 1.0f);
  fill(bias, in.bias, 0.0f);
}

void Scan::run(Engine::Call& call, std::uint32_t rows) {
  std::vector<double> flops(program.sections());
  auto* slot = params_.as<char>();
  for (const auto& block : blocks_) {
    const auto here = std::min(shape.rows, rows - std::min(rows, block.first_row));
    const kernels::ScoreTiled cost{points_.quads(), block.points, shape.scaled, 0};
    *reinterpret_cast<kernels::ScoreTiled::Params*>(slot) = {
        here, block.points, block.first_point - points_.shard_begin(block.shard), block.first_point, block.first_row};
    slot += kSlotBytes;
    flops[block.section] += cost.flops(here);
  }
  *reinterpret_cast<std::uint32_t*>(slot) = rows;
  for (std::uint32_t section = 0; section < program.sections(); ++section)
    if (section == 0 || section + 1 == program.sections() || flops[section] > 0)
      call.add(program, section, shape.speed, flops[section]);
  call.run();
}

}  // namespace ebmvk
