#pragma once

#include "ops/quantize/quantize.h"

namespace quantaria::ops {

/// The factors that a row is tried with: 2^(-i/32), rounded to float32.
inline constexpr int kMxPreScales = 32;
struct MxFactors {
  float value[kMxPreScales];
};
const MxFactors& mx_factors();

/// Of an element's largest value.
int mx_max_exponent(MxElement element);

}  // namespace quantaria::ops
