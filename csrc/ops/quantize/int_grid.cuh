#pragma once

#include "core/dtype.h"
#include "ops/quantize/grid_rule.h"
#include "ops/quantize/int_grid.h"
#include "simt/simt.h"

/// Uniform grids on GPUs, step by step as on the CPU.
namespace quantaria::ops {

/// A scheme as kernels take it.
struct IntRule {
  GridRule grid;
  IntLimits limits;
  DType scale_dtype;
  bool symmetric;
};
inline IntRule int_rule_of(const IntScheme& scheme) {
  return {rule_of(scheme), limits_of(scheme), scheme.scale_dtype, scheme.symmetric};
}

template <class Rounding>
__device__ AffineGrid fit_rounded(const IntRule& rule, float low, float high, const Rounding& rounding) {
  if (!rule.symmetric) return affine_grid(rule.grid, low, high, rounding);
  return {symmetric_scale(rule.grid, -low > high ? -low : high, rounding), 0.0f};
}

/// The grid of values in [low, high], low <= 0 <= high.
__device__ inline AffineGrid fit_int(const IntRule& rule, float low, float high) {
  if (rule.scale_dtype == DType::float16) return fit_rounded(rule, low, high, ScaleToHalf{});
  if (rule.scale_dtype == DType::bfloat16) return fit_rounded(rule, low, high, ScaleToBfloat16{});
  return fit_rounded(rule, low, high, ScaleToFloat{});
}

/// Rounding to one grid. Limits are those of the codes less the zero point: clamping first gives the same
/// codes because they are integers.
struct GridCoder {
  float scale;
  float low;
  float high;
  int32_t offset;  // of the stored code, the zero point included

  __device__ GridCoder(const IntRule& rule, float step, float zero)
      : scale(step),
        low(rule.limits.low - zero),
        high(rule.limits.high - zero),
        offset(static_cast<int32_t>(zero) + rule.limits.offset) {}

  /// round(w / scale) + 1.5 * 2^23, whose low bits are the integer.
  __device__ float rounded(float w) const {
    const float steps = w / scale;
    const float above = steps > low ? steps : low;
    return (above < high ? above : high) + numerics::kRoundingMagic;
  }
  __device__ uint32_t code(float w) const {
    return numerics::bits_of(rounded(w)) + static_cast<uint32_t>(offset);
  }
  __device__ float kept(float w) const { return (rounded(w) - numerics::kRoundingMagic) * scale; }
};

}  // namespace quantaria::ops
