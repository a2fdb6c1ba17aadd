#pragma once

#include "cpu/lanes.h"
#include "ops/dequant_matmul/codes.h"

/// Codes as bytes, four columns a word, for kernels' files. Where a byte holds whole codes they are taken
/// from all bytes of a word at once, which sets the order of columns (byte_order); else in their own order.
namespace quantaria::ops::QUANTARIA_ISA {

/// Word j of a unit's codes, as bytes.
template <int bits>
QUANTARIA_LANES Ints bytes_of(const Ints (&unit)[Unit<bits>::kWords], int j) {
  if constexpr (bits == 8) {
    return unit[0];
  } else if constexpr (8 % bits == 0) {
    constexpr int32_t kMask = ((1 << bits) - 1) * 0x01010101;
    return shift_right(unit[0], j * bits) & splat(kMask);
  } else {
    const Ints low = splat(int32_t{(1 << bits) - 1});
    Ints word = code<bits>(unit, 4 * j) & low;
    for (int i = 1; i < 4; ++i) word = word | shift_left(code<bits>(unit, 4 * j + i) & low, 8 * i);
    return word;
  }
}
}  // namespace quantaria::ops::QUANTARIA_ISA
