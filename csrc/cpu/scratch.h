// Working memory for a thread of the pool.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

#include "cpu_operations.h"

namespace ebmvk {

inline size_t RoundUp(size_t value, size_t multiple) { return (value + multiple - 1) / multiple * multiple; }

struct AlignedFree {
  void operator()(float* memory) const { ::operator delete[](memory, std::align_val_t{64}); }
};
using AlignedFloats = std::unique_ptr<float[], AlignedFree>;

// How far beyond d any target writes when it fills in normals (kNormalsPerDraw of 512-bit vectors).
constexpr size_t kNoisePad = 128;

// Zeroed, so that padding is zero. Throws std::bad_alloc.
AlignedFloats AllocateFloats(size_t count);

// The candidates of one state in contiguous memory, padded with zeros (extra rows have log weight
// -inf). A block stays in the first-level cache from its dot products to its part of the pull: 8
// rows of 640 floats are 20 KB. Rows of a block are interleaved by cache lines, so that all
// candidates form one stream, which processors prefetch best.
struct Gathered {
  static constexpr size_t kBlock = 8, kChunk = 16;
  size_t k, n;  // k: a multiple of kBlock; n: of 32
  float* rows;  // (k / kBlock, n / kChunk, kBlock, kChunk)
  float* logw;  // (k), as are the next two
  float* kappa;
  float* logits;
  float log_background;
};

// Owns the arrays of a Gathered, for lists of one shape.
class GatherSpace {
 public:
  GatherSpace(size_t k, size_t d);
  // Copies in the candidates of `row`; call it again for the next row.
  Gathered& Gather(const EnergyScoreArguments& lists, size_t row);

 private:
  AlignedFloats memory_;
  Gathered gathered_;
};

}  // namespace ebmvk
