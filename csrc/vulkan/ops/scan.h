// Scores queries with all points, block by block, and merges each block into the best so far.
#pragma once

#include "vulkan/ops/engine.h"

namespace ebmvk {

struct ScanShape {
  std::uint32_t capacity, columns, k;  // number of queries, of points per block, and of points to keep
  bool scaled;
};

// The shape for as many of `rows` queries as fit into one slice.
ScanShape scan_shape(Engine& engine, const Rows& points, std::uint64_t rows, std::uint32_t k, bool scaled);
// True if the device has room to select k points.
bool selectable(const Device& device, std::uint32_t k);

class Scan {
 public:
  // With `coarse`, scans its float16 rows; scores are then upper bounds of the float32 scores.
  Scan(Engine& engine, const Rows& points, const ScanShape& shape, const Coarse* coarse);

  void write(const TopkArguments& in, std::uint64_t begin, std::uint32_t rows);
  void run(Engine::Call& call, std::uint32_t rows);

  const ScanShape shape;
  Buffer params;
  Table queries, scale, bias, norms, best_scores, best_ids;

 private:
  std::unique_ptr<Program> record_block(Engine& engine, std::uint32_t shard, const Buffer* radius);

  const Rows& points_;
  bool bounded_;
  Buffer scores_;
  Program load_;
  std::vector<std::unique_ptr<Program>> blocks_;  // one for each shard
};

}  // namespace ebmvk
