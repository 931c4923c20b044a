// Memory that a thread of the pool works in.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "cpu_energy.h"

namespace ebmvk {

inline size_t RoundUp(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct AlignedFree {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};
using AlignedFloats = std::unique_ptr<float[], AlignedFree>;

// The longest a target writes beyond d when it fills normals (kNormalsPerDraw of 512-bit vectors).
constexpr size_t kNoisePad = 128;

// Throws std::bad_alloc. Zeroed, so that padding is.
AlignedFloats AllocateFloats(size_t count);

// The candidates of one state in contiguous memory, padded with zeros (rows: log weight -inf), in blocks that stay in
// the first-level cache from their dots to their part of the pull: 8 rows of 640 are 20 KB. The rows of a block are
// interleaved a cache line at a time, so that all candidates are one stream, which processors prefetch best.
struct Gathered {
  static constexpr size_t kBlock = 8, kChunk = 16;
  size_t k, n;  // k a multiple of kBlock, n of 32
  float* rows;  // (k / kBlock, n / kChunk, kBlock, kChunk)
  float* logw;  // (k), as are the next two
  float* kappa;
  float* logits;
  float log_background;
};

// Owns the arrays of one Gathered for lists of one shape.
class GatherSpace {
 public:
  GatherSpace(size_t k, size_t d);
  // Copies the candidates of `row` in; call again for the next row.
  Gathered& Gather(const CandidateLists& lists, size_t row);

 private:
  AlignedFloats memory_;
  Gathered gathered_;
};

}  // namespace ebmvk
