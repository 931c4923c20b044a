// Converts float32 to IEEE 754 binary16.
#pragma once

#include <cstdint>
#include <cstring>

namespace ebmvk {

// Rounds to nearest, ties to even, and keeps subnormal numbers. Runs on the host, because a
// shader's packHalf2x16 may round differently.
inline std::uint16_t nearest_half(float value) {
  std::uint32_t bits;
  std::memcpy(&bits, &value, 4);
  const auto sign = static_cast<std::uint16_t>(bits >> 16 & 0x8000u);
  bits &= 0x7fffffffu;
  if (bits >= 0x47800000u)  // 65536 and above become infinite; NaN stays NaN
    return static_cast<std::uint16_t>(sign | (bits > 0x7f800000u ? 0x7e00u : 0x7c00u));
  if (bits < 0x38800000u) {  // below 2^-14: adding 1/2, whose last place is 2^-24, does the rounding
    float magnitude;
    std::memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    std::memcpy(&bits, &magnitude, 4);
    return static_cast<std::uint16_t>(sign | (bits - 0x3f000000u));
  }
  const std::uint32_t odd = bits >> 13 & 1u;
  bits += 0xc8000000u + 0xfffu +
          odd;  // changes the exponent's bias from 127 to 15; adds half of the last place, minus one if even
  return static_cast<std::uint16_t>(sign | bits >> 13);
}

}  // namespace ebmvk
