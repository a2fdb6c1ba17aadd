#pragma once

#include "numerics/bits.h"

/// bfloat16, the upper half of a float32, held as its bits.
namespace quantaria::numerics {

/// Exact.
[[gnu::always_inline]] constexpr float float_from_bfloat16(uint16_t value) {
  return float_of(static_cast<uint32_t>(value) << 16);
}

/// Rounds to nearest even; NaN becomes a quiet NaN of the same sign.
[[gnu::always_inline]] constexpr uint16_t bfloat16_from_float(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
  const uint32_t quiet = bits >> 16 | 0x40u;
  return static_cast<uint16_t>((bits & ~kSignBit) > kInfinityBits ? quiet : rounded);
}

inline constexpr float kBfloat16Max = 0x1.fep127f;
inline constexpr float kBfloat16MinPositive = 0x1p-133f;

}  // namespace quantaria::numerics
