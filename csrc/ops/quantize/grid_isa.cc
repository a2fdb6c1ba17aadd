#include "numerics/bfloat16.h"
#include "numerics/bits.h"
#include "numerics/half.h"
#include "ops/quantize/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

using numerics::kRoundingMagic;

struct ToFloat {
  [[gnu::always_inline]] float operator()(float x) const { return x; }
};
struct ToHalf {
  [[gnu::always_inline]] float operator()(float x) const {
    return numerics::float_from_half(numerics::half_from_float(x));
  }
};
struct ToBfloat16 {
  [[gnu::always_inline]] float operator()(float x) const {
    return numerics::float_from_bfloat16(numerics::bfloat16_from_float(x));
  }
};

[[gnu::always_inline]] inline float clamped(float x, float least, float most) {
  const float above = x < least ? least : x;
  return above > most ? most : above;
}

// Plain loops without branches: the compiler vectorises them over the groups.

template <class Rounding>
void fit_symmetric(const GridRule& rule, const float* absmax, int64_t n, float* scales) {
  constexpr Rounding rounded;
  for (int64_t i = 0; i < n; ++i) {
    const float doubled = absmax[i] + absmax[i];
    // A width beyond float32 still has a finite step.
    const bool wide = doubled > numerics::float_of(numerics::kInfinityBits - 1);
    const float step = (rule.full_range && !wide ? doubled : absmax[i]) / rule.steps;
    const float scale = rule.full_range && wide ? step + step : step;
    const float fitted = clamped(rounded(scale), rule.least_scale, rule.largest_scale);
    scales[i] = absmax[i] == 0.0f ? 1.0f : fitted;
  }
}

template <class Rounding>
void fit_affine(const GridRule& rule, const float* low, const float* high, int64_t n, float* scales,
                float* zeros) {
  constexpr Rounding rounded;
  for (int64_t i = 0; i < n; ++i) {
    const bool empty = low[i] == 0.0f && high[i] == 0.0f;
    const float bottom = empty ? -1.0f : low[i];
    const float top = empty ? 1.0f : high[i];
    const float width = top - bottom;
    const bool wide = width > numerics::float_of(numerics::kInfinityBits - 1);
    const float step = wide ? top / rule.steps - bottom / rule.steps : width / rule.steps;
    const float scale = clamped(rounded(step), rule.least_scale, rule.largest_scale);
    // A rounded scale can push the zero just past the last code. Clamped before it is rounded, which gives
    // the same because the limits are integers.
    const float zero = clamped(-bottom / scale, 0.0f, rule.steps);
    scales[i] = scale;
    zeros[i] = zero + kRoundingMagic - kRoundingMagic;
  }
}

}  // namespace

extern const GridKernels grid_kernels;
const GridKernels grid_kernels = {
    {fit_symmetric<ToFloat>, fit_symmetric<ToHalf>, fit_symmetric<ToBfloat16>},
    {fit_affine<ToFloat>, fit_affine<ToHalf>, fit_affine<ToBfloat16>},
};

}  // namespace quantaria::ops::QUANTARIA_ISA
