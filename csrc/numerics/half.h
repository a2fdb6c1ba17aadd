#pragma once

#include "numerics/bits.h"

/// IEEE binary16, held as its bits.
namespace quantaria::numerics {

/// Exact.
[[gnu::always_inline]] constexpr float float_from_half(uint16_t half) {
  const uint32_t magnitude = half & 0x7fffu;
  // Moved to float32's places the exponent is 112 too small; a multiplication repairs that and
  // normalises subnormals by the way.
  const float finite = float_of(magnitude << 13) * power_of_two(112);
  const uint32_t special = kInfinityBits | (magnitude << 13);
  const uint32_t bits = magnitude >= 0x7c00u ? special : bits_of(finite);
  return float_of(bits | (static_cast<uint32_t>(half) & 0x8000u) << 16);
}

/// Rounds to nearest even, beyond 65504 to infinity; NaN becomes a quiet NaN of the same sign.
[[gnu::always_inline]] constexpr uint16_t half_from_float(float x) {
  const uint32_t bits = bits_of(x);
  const uint32_t magnitude = bits & ~kSignBit;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  // The unit in the last place of 0.5f is half's smallest subnormal, so the sum rounds to it.
  const float small = float_of(magnitude < 0x38800000u ? magnitude : 0u);
  const uint32_t subnormal = bits_of(small + 0.5f) - bits_of(0.5f);
  uint32_t half = magnitude < 0x38800000u ? subnormal : normal;
  half = magnitude >= 0x47800000u ? 0x7c00u : half;
  half = magnitude > kInfinityBits ? 0x7e00u : half;
  return static_cast<uint16_t>(half | (bits >> 16 & 0x8000u));
}

inline constexpr float kHalfMax = 65504.0f;
inline constexpr float kHalfMinPositive = 0x1p-24f;

}  // namespace quantaria::numerics
