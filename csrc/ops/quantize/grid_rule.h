#pragma once

#include <cstdint>

#include "numerics/bfloat16.h"
#include "numerics/bits.h"
#include "numerics/half.h"

/// How the uniform grid of one group follows from its extrema (ops/quantize/int_grid.h), step by step in
/// float32, on the CPU and on GPUs.
namespace quantaria::ops {

struct GridRule {
  float steps;      // the range, or the absmax of symmetric restricted grids, has so many
  bool full_range;  // symmetric only
  float least_scale;
  float largest_scale;
};

/// What scales are rounded to.
struct ScaleToFloat {
  [[gnu::always_inline]] constexpr float operator()(float x) const { return x; }
};
struct ScaleToHalf {
  [[gnu::always_inline]] constexpr float operator()(float x) const {
    return numerics::float_from_half(numerics::half_from_float(x));
  }
};
struct ScaleToBfloat16 {
  [[gnu::always_inline]] constexpr float operator()(float x) const {
    return numerics::float_from_bfloat16(numerics::bfloat16_from_float(x));
  }
};

[[gnu::always_inline]] constexpr float clamped_between(float x, float least, float most) {
  const float above = x < least ? least : x;
  return above > most ? most : above;
}

template <class Rounding>
[[gnu::always_inline]] constexpr float symmetric_scale(const GridRule& rule, float absmax,
                                                       const Rounding& rounded) {
  const float doubled = absmax + absmax;
  // A width beyond float32 still has a finite step.
  const bool wide = doubled > numerics::float_of(numerics::kInfinityBits - 1);
  const float step = (rule.full_range && !wide ? doubled : absmax) / rule.steps;
  const float scale = rule.full_range && wide ? step + step : step;
  const float fitted = clamped_between(rounded(scale), rule.least_scale, rule.largest_scale);
  return absmax == 0.0f ? 1.0f : fitted;
}

struct AffineGrid {
  float scale;
  float zero;
};

template <class Rounding>
[[gnu::always_inline]] constexpr AffineGrid affine_grid(const GridRule& rule, float low, float high,
                                                        const Rounding& rounded) {
  const bool empty = low == 0.0f && high == 0.0f;
  const float bottom = empty ? -1.0f : low;
  const float top = empty ? 1.0f : high;
  const float width = top - bottom;
  const bool wide = width > numerics::float_of(numerics::kInfinityBits - 1);
  const float step = wide ? top / rule.steps - bottom / rule.steps : width / rule.steps;
  const float scale = clamped_between(rounded(step), rule.least_scale, rule.largest_scale);
  // A rounded scale can push the zero just past the last code. Clamped before it is rounded, which gives
  // the same because the limits are integers.
  const float zero = clamped_between(-bottom / scale, 0.0f, rule.steps);
  return {scale, zero + numerics::kRoundingMagic - numerics::kRoundingMagic};
}

}  // namespace quantaria::ops
