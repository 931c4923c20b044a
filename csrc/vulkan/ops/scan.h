// Scores queries with all points, block by block, and merges each block into the best so far. The
// k-th best so far is the bar that a score of the next block must pass, so that few are kept.
#pragma once

#include "vulkan/ops/engine.h"

namespace ebmvk {

// capacity: the number of queries. A block has the scores of `rows` of them and of `columns` points;
// the first block has `first` points. k: the number of points to keep.
struct ScanShape {
  std::uint32_t capacity, rows, columns, first, k;
  bool scaled;
  std::string speed;  // its name for Engine::units_per_slice()
};

// The shape for `rows` queries, or for as many of them as fit. A block takes at most a slice of time.
// Until the kernel's speed is known, there is one block of rows.
ScanShape scan_shape(Engine& engine, const Rows& points, std::uint64_t rows, std::uint32_t k, bool scaled);
// True if the device has enough shared memory to select k points.
bool selectable(const Device& device, std::uint32_t k);
// select_topk.comp's specialisation constants.
std::vector<std::uint32_t> select_constants(const Capabilities& device, std::uint32_t k);
// The number of points, of n, that a scan in float16 keeps to rescore them in float32. At d = 640, the
// 80th best of 50,000 uniform points is ten bounds below the 64th.
std::uint32_t rescored(std::uint32_t k, std::uint32_t n = ~0u);

// True if scores are weighted.
inline bool scaled(const TopkArguments& in) { return in.scale.given() || in.bias.given(); }

class Scan {
 public:
  // Scans for the queries from `begin` on. With `coarse`, scans its float16 rows; scores are then
  // upper bounds of the float32 scores.
  Scan(Engine& engine, const Rows& points, const ScanShape& shape, const Coarse* coarse, const TopkArguments& in,
       const TopkResults& to, std::uint64_t begin);

  void write(const TopkArguments& in, std::uint64_t begin, std::uint32_t rows);
  // Adds all sections that have work to the plan, the last one included, and runs it.
  void run(Engine::Call& call, std::uint32_t rows);
  // params with the number of all rows, for kernels after the blocks.
  View params() const;

  const ScanShape shape;
  Operand queries, scale, bias, best_scores, best_ids;
  // Ends with the last block. The owner records what to do with the best, and finishes it.
  Program program;

 private:
  struct Block {
    std::uint32_t section, shard, first_row, first_point, points;
  };

  std::vector<Block> divide(std::uint64_t section_rows) const;
  void record(Engine& engine, const Block& block, std::size_t slot, const Buffer* radius);
  View slot(std::size_t number) const;

  const Rows& points_;
  Buffer norms_;          // bounds of the queries' norms, if scores are bounds
  Buffer bars_, counts_;  // of each query, for its list
  Buffer lists_;          // room for all scores of a block: bits and id
  std::vector<Block> blocks_;
  Buffer params_;  // a slot for each block, and one for all rows
};

}  // namespace ebmvk
