#pragma once

#include <cstdint>

/// Bit-level helpers of the value formats. All of numerics/ is plain constexpr C++ without the standard
/// library's functions, for host and device. Functions are always inlined: kernels are compiled once per
/// instruction set, and a shared out-of-line copy could hold instructions that the machine lacks.
namespace quantaria::numerics {

[[gnu::always_inline]] constexpr uint32_t bits_of(float x) { return __builtin_bit_cast(uint32_t, x); }
[[gnu::always_inline]] constexpr float float_of(uint32_t bits) { return __builtin_bit_cast(float, bits); }

/// 2^exponent for a normal result, -126..127.
[[gnu::always_inline]] constexpr float power_of_two(int exponent) {
  return float_of(static_cast<uint32_t>(exponent + 127) << 23);
}

inline constexpr uint32_t kSignBit = 0x80000000u;
inline constexpr uint32_t kInfinityBits = 0x7f800000u;
inline constexpr float kQuietNaN = __builtin_bit_cast(float, 0x7fc00000u);

[[gnu::always_inline]] constexpr bool is_nan(float x) { return (bits_of(x) & ~kSignBit) > kInfinityBits; }
[[gnu::always_inline]] constexpr bool is_finite(float x) { return (bits_of(x) & ~kSignBit) < kInfinityBits; }

/// 1.5 * 2^23: its unit in the last place is 1, so adding it to |x| <= 2^22 rounds x to the nearest even
/// integer, which can be read from the low bits of the sum.
inline constexpr float kRoundingMagic = 12582912.0f;

}  // namespace quantaria::numerics
