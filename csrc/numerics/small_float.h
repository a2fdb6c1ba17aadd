#pragma once

#include "numerics/bits.h"

/// Floats of at most 8 bits: sign above exponent above mantissa. OCP's 4-, 6- and 8-bit formats.
namespace quantaria::numerics {

struct SmallFloat {
  int exponent_bits;
  int mantissa_bits;
  int bias;
  uint32_t max_code;  // of the largest finite value

  constexpr int bits() const { return 1 + exponent_bits + mantissa_bits; }
  constexpr int min_exponent() const { return 1 - bias; }
};

inline constexpr SmallFloat kE2M1{2, 1, 1, 0x7};
inline constexpr SmallFloat kE2M3{2, 3, 1, 0x1f};
inline constexpr SmallFloat kE3M2{3, 2, 3, 0x1f};
inline constexpr SmallFloat kE4M3{4, 3, 7, 0x7e};
inline constexpr SmallFloat kE5M2{5, 2, 15, 0x7b};

enum class Rounding : uint8_t { even, nearest /* half away from zero */, floor /* toward zero */ };

/// Value of a code that is no infinity and no NaN; exact.
template <SmallFloat F>
[[gnu::always_inline]] constexpr float decode_finite(uint32_t code) {
  const int mantissa = static_cast<int>(code & ((1u << F.mantissa_bits) - 1));
  const int exponent = static_cast<int>(code >> F.mantissa_bits & ((1u << F.exponent_bits) - 1));
  const int significand = exponent == 0 ? mantissa : mantissa + (1 << F.mantissa_bits);
  const int power = (exponent == 0 ? 1 : exponent) - F.bias - F.mantissa_bits;
  const float magnitude = static_cast<float>(significand) * power_of_two(power);
  const uint32_t sign = (code >> (F.bits() - 1) & 1u) << 31;
  return float_of(bits_of(magnitude) | sign);
}

template <SmallFloat F>
inline constexpr float kMaxFinite = decode_finite<F>(F.max_code);

/// Code of x, rounded as asked and saturated to the largest finite value; the sign is kept, also of a
/// zero. NaN is not looked for.
template <SmallFloat F, Rounding R = Rounding::even>
[[gnu::always_inline]] constexpr uint32_t encode_saturating(float x) {
  const uint32_t magnitude_bits = bits_of(x) & ~kSignBit;
  const uint32_t clamped = magnitude_bits < bits_of(kMaxFinite<F>) ? magnitude_bits : bits_of(kMaxFinite<F>);
  int exponent = static_cast<int>(clamped >> 23) - 127;
  exponent = exponent > F.min_exponent() ? exponent : F.min_exponent();
  // In units of the last place of x's binade: at most 2^(mantissa_bits + 1), and exact.
  const float steps = float_of(clamped) * power_of_two(F.mantissa_bits - exponent);
  uint32_t whole = 0;
  if constexpr (R == Rounding::even) {
    whole = bits_of(steps + kRoundingMagic) - bits_of(kRoundingMagic);
  } else {
    const int truncated = static_cast<int>(steps);
    const bool up = R == Rounding::nearest && steps - static_cast<float>(truncated) >= 0.5f;
    whole = static_cast<uint32_t>(truncated + (up ? 1 : 0));
  }
  // Codes run on linearly inside a binade and from one to the next, so a carry needs no case of its own.
  const uint32_t binade = static_cast<uint32_t>(exponent - F.min_exponent()) << F.mantissa_bits;
  return binade + whole + ((bits_of(x) >> 31) << (F.bits() - 1));
}

}  // namespace quantaria::numerics
