#pragma once

#include "numerics/small_float.h"

/// float8 E4M3 (the "fn" kind: no infinity, NaN is 0x7f and 0xff) and E5M2 (IEEE-like), held as bytes.
namespace quantaria::numerics {

/// Rounds to nearest even and saturates, infinities too; NaN stays NaN.
[[gnu::always_inline]] constexpr uint8_t e4m3_from_float(float x) {
  const uint32_t nan = 0x7fu | (bits_of(x) >> 24 & 0x80u);
  return static_cast<uint8_t>(is_nan(x) ? nan : encode_saturating<kE4M3>(x));
}

[[gnu::always_inline]] constexpr uint8_t e5m2_from_float(float x) {
  const uint32_t nan = 0x7fu | (bits_of(x) >> 24 & 0x80u);
  return static_cast<uint8_t>(is_nan(x) ? nan : encode_saturating<kE5M2>(x));
}

[[gnu::always_inline]] constexpr float float_from_e4m3(uint8_t code) {
  // To float32's places the exponent is 120 too small (numerics/half.h). Not decode_finite<kE4M3>: nvcc 13.0
  // garbles it.
  const float finite = float_of((code & 0x7fu) << 20) * power_of_two(120);
  const uint32_t sign = (code & 0x80u) << 24;
  return (code & 0x7fu) == 0x7fu ? kQuietNaN : float_of(bits_of(finite) | sign);
}

/// E5M2 is the upper byte of a half, so its exponent needs the same repair (numerics/half.h).
[[gnu::always_inline]] constexpr float float_from_e5m2(uint8_t code) {
  const uint32_t magnitude = code & 0x7fu;
  const float finite = float_of(magnitude << 21) * power_of_two(112);
  const uint32_t bits = magnitude >= 0x7cu ? kInfinityBits | magnitude << 21 : bits_of(finite);
  return float_of(bits | (code & 0x80u) << 24);
}

}  // namespace quantaria::numerics
