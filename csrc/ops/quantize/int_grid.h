#pragma once

#include "ops/quantize/kernels.h"
#include "ops/quantize/quantize.h"

/// The uniform grid of one group, as the public contract defines it; shared with the solvers that fit
/// grids on their own statistics.
namespace quantaria::ops {

struct IntGrid {
  float scale;
  int32_t zero;  // 0 when symmetric
};

/// Throws ERR_ARGUMENT or ERR_DTYPE for bits, group sizes and scale types that do not exist.
void check_scheme(const IntScheme& scheme);
void check_scale_dtype(DType dtype);

/// The smallest and the largest positive value of a dtype of scales.
struct ScaleLimits {
  float least;
  float largest;
};
ScaleLimits scale_limits(DType scale_dtype);

/// Lowest and highest code (symmetric: signed) and what is added to a code before it is stored.
IntLimits limits_of(const IntScheme& scheme);

/// Steps and limits of the scheme's grids.
GridRule rule_of(const IntScheme& scheme);

/// Columns that share a scale: group_size, or `in` for the other granularities.
int64_t group_length(const IntScheme& scheme, int64_t in);

/// The grids of n groups with values in [low, high], low <= 0 <= high; symmetric: high is the absmax, low and
/// zeros may be null. Scales are rounded to the scheme's dtype, never to 0 (the smallest positive value then)
/// nor infinity (the largest).
void fit_grids(const IntScheme& scheme, const float* low, const float* high, int64_t n, float* scales,
               float* zeros);

/// The grid of values in [low, high], low <= 0 <= high.
IntGrid fit_grid(const IntScheme& scheme, float low, float high);

/// Shrink factors of the search: 1 - k/100.
inline constexpr int kShrinkSteps = 80;
constexpr float shrink_factor(int k) { return static_cast<float>(1.0 - k / 100.0); }

/// A power of two that brings errors of a group in [low, high] near 1, so that their 2.4th powers neither
/// overflow nor vanish.
float error_unit(float low, float high);

/// fit_grid over the shrink factors, least sum |error|^2.4 over the group's n values; ties keep the larger
/// range.
IntGrid search_grid(const IntScheme& scheme, const float* group, int64_t n, float low, float high);

}  // namespace quantaria::ops
