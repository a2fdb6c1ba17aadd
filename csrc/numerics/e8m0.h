#pragma once

#include "numerics/bits.h"

/// E8M0, the power-of-two scale of MX blocks: byte b is 2^(b - 127), 255 is NaN.
namespace quantaria::numerics {

[[gnu::always_inline]] constexpr float float_from_e8m0(uint8_t code) {
  const uint32_t bits = code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23;
  return code == 255 ? kQuietNaN : float_of(bits);
}

/// 2^-(b - 127), what elements are multiplied by; b <= 254.
[[gnu::always_inline]] constexpr float inverse_of_e8m0(uint8_t code) {
  return float_from_e8m0(static_cast<uint8_t>(254 - code));
}

/// The shared exponent of OCP MX: floor(log2(absmax)) - element_emax, not under -127. `absmax` is finite
/// and >= 0; subnormals and zero give byte 0.
[[gnu::always_inline]] constexpr uint8_t e8m0_of_absmax(float absmax, int element_emax) {
  const int biased = static_cast<int>(bits_of(absmax) >> 23) - element_emax;
  return static_cast<uint8_t>(biased > 0 ? biased : 0);
}

}  // namespace quantaria::numerics
