#pragma once

#include "ops/quantize/int_grid.h"

/// How the scale of a row or a tensor of 8-bit floats follows from its absmax, on the CPU and on GPUs.
namespace quantaria::ops {

struct Float8Rule {
  float largest;  // finite value of the format
  DType scale_dtype;
  ScaleLimits scales;
};

inline Float8Rule float8_rule_of(const Fp8Scheme& scheme) {
  return {largest_finite(scheme.format), scheme.scale_dtype, scale_limits(scheme.scale_dtype)};
}

/// absmax / largest; 1 for zeros, and never 0 for anything else.
constexpr float float8_scale(const Float8Rule& rule, float absmax) {
  if (absmax == 0) return 1.0f;
  const float exact = absmax / rule.largest;
  const float rounded = rule.scale_dtype == DType::float16    ? ScaleToHalf{}(exact)
                        : rule.scale_dtype == DType::bfloat16 ? ScaleToBfloat16{}(exact)
                                                              : exact;
  return clamped_between(rounded, rule.scales.least, rule.scales.largest);
}

}  // namespace quantaria::ops
