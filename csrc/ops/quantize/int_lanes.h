#pragma once

#include "cpu/lanes.h"
#include "ops/quantize/kernels.h"

/// Rounding to a uniform grid, sixteen lanes at a time. For *_isa.cc files only.
namespace quantaria::ops::QUANTARIA_ISA {

struct Grid {
  Floats scale;
  Floats low;  // limits less the zero
  Floats high;
  Ints offset;  // of the stored code, the zero included
};

QUANTARIA_LANES Grid grid_of(const Floats& scale, const Floats& zero, const IntLimits& limits) {
  return {scale, splat(limits.low) - zero, splat(limits.high) - zero, truncate(zero) + splat(limits.offset)};
}

/// round(clamp(w / scale)) + 2^23 * 1.5, whose low bits are the integer (numerics/bits.h). Clamping first
/// gives the same codes as clamping last because the limits are integers.
QUANTARIA_LANES Floats rounded(const Floats& w, const Grid& grid) {
  return smaller(larger(w / grid.scale, grid.low), grid.high) + splat(numerics::kRoundingMagic);
}

}  // namespace quantaria::ops::QUANTARIA_ISA
