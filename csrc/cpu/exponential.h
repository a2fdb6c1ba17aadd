#pragma once

#include "cpu/lanes.h"

/// For *_isa.cc files only.
namespace quantaria::ops::QUANTARIA_ISA {

/// e^x for x in [-87, 88], within 2 units in the last place: 2^n times e^r by its series, |r| <= ln 2 / 2.
QUANTARIA_LANES Floats exponential(const Floats& x) {
  constexpr float kLog2E = 0x1.715476p+0f;
  constexpr float kLn2High = 0x1.62e4p-1f;  // its product with n is exact
  constexpr float kLn2Low = 0x1.7f7d1cp-20f;
  const Floats magic = splat(0x1.8p23f);  // rounds what is added to it to an integer
  const Floats shifted = x * splat(kLog2E) + magic;
  const Floats n = shifted - magic;
  const Floats r = multiply_add(n, splat(-kLn2Low), multiply_add(n, splat(-kLn2High), x));
  constexpr float kTerms[] = {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
  Floats series = splat(1.0f / 720);
  for (const float term : kTerms) series = multiply_add(series, r, splat(term));
  return as_floats(bits(series) + shift_left(bits(shifted) - bits(magic), 23));
}

}  // namespace quantaria::ops::QUANTARIA_ISA
