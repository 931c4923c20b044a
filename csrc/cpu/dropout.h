// Dropout whose masks are a function of (seed, step, place, element): ebmvk/engine/dropout.py.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ebmvk {

// place: the number of the call in a pass; first: the number of the first element of x among those
// of the whole step. An element is zeroed if its random byte is below threshold (0 .. 255).
struct Masks {
  uint64_t seed;
  uint32_t step, place;
  uint64_t first;
  uint32_t threshold;
};

// out = x times 256 / (256 - threshold), or times 0. x, out: (n).
void Dropout(const Masks& masks, size_t n, const float* x, float* out);
// The same for bfloat16, rounded to nearest, ties to even.
void DropoutBfloat16(const Masks& masks, size_t n, const uint16_t* x, uint16_t* out);

}  // namespace ebmvk
