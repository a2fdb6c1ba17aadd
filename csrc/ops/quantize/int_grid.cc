#include "ops/quantize/int_grid.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"

namespace quantaria::ops {
namespace {

/// Of float32, float16, bfloat16, as the kernels' tables go.
constexpr float kLeastScale[] = {std::numeric_limits<float>::denorm_min(), numerics::kHalfMinPositive,
                                 numerics::kBfloat16MinPositive};
constexpr float kLargestScale[] = {std::numeric_limits<float>::max(), numerics::kHalfMax,
                                   numerics::kBfloat16Max};

size_t index_of(DType scale_dtype) {
  return scale_dtype == DType::float16 ? 1 : scale_dtype == DType::bfloat16 ? 2 : 0;
}

}  // namespace

ScaleLimits scale_limits(DType scale_dtype) {
  const size_t type = index_of(scale_dtype);
  return {kLeastScale[type], kLargestScale[type]};
}

GridRule rule_of(const IntScheme& scheme) {
  const bool half_range = scheme.symmetric && !scheme.full_range;
  const int steps = half_range ? (1 << (scheme.bits - 1)) - 1 : (1 << scheme.bits) - 1;
  const ScaleLimits scales = scale_limits(scheme.scale_dtype);
  return {static_cast<float>(steps), scheme.full_range, scales.least, scales.largest};
}

void check_scheme(const IntScheme& scheme) {
  if ((scheme.bits < 2 || scheme.bits > 8) && scheme.bits != 16)
    fail(ErrorCode::argument, "bits: ", scheme.bits, " given, 2..8 or 16 expected");
  if (scheme.granularity == Granularity::group && scheme.group_size < 1)
    fail(ErrorCode::argument, "groupSize: ", scheme.group_size, " given, at least 1 expected");
  check_scale_dtype(scheme.scale_dtype);
}

void check_scale_dtype(DType dtype) {
  if (dtype != DType::float32 && dtype != DType::float16 && dtype != DType::bfloat16)
    fail(ErrorCode::dtype, "scaleDtype: ", name_of(dtype), " given, float32, float16 or bfloat16 expected");
}

IntLimits limits_of(const IntScheme& scheme) {
  if (!scheme.symmetric) return {0.0f, static_cast<float>((1 << scheme.bits) - 1), 0};
  const int half = 1 << (scheme.bits - 1);
  return {static_cast<float>(scheme.full_range ? -half : 1 - half), static_cast<float>(half - 1), half};
}

int64_t group_length(const IntScheme& scheme, int64_t in) {
  return scheme.granularity == Granularity::group ? scheme.group_size : std::max<int64_t>(1, in);
}

void fit_grids(const IntScheme& scheme, const float* low, const float* high, int64_t n, float* scales,
               float* zeros) {
  const GridKernels& kernels = grid_kernels();
  const size_t type = index_of(scheme.scale_dtype);
  if (scheme.symmetric)
    kernels.symmetric[type](rule_of(scheme), high, n, scales);
  else
    kernels.affine[type](rule_of(scheme), low, high, n, scales, zeros);
}

IntGrid fit_grid(const IntScheme& scheme, float low, float high) {
  float scale = 0;
  float zero = 0;
  const float most = scheme.symmetric ? std::max(-low, high) : high;
  fit_grids(scheme, &low, &most, 1, &scale, &zero);
  return {scale, static_cast<int32_t>(zero)};
}

float error_unit(float low, float high) {
  const int exponent = std::ilogb(std::max({-low, high, std::numeric_limits<float>::min()}));
  return numerics::power_of_two(std::clamp(-exponent, -126, 126));
}

IntGrid search_grid(const IntScheme& scheme, const float* group, int64_t n, float low, float high) {
  IntGrid best = fit_grid(scheme, low, high);
  if (low == 0 && high == 0) return best;
  const IntKernels& kernels = int_kernels();
  const IntLimits limits = limits_of(scheme);
  const float unit = error_unit(low, high);
  double least = std::numeric_limits<double>::infinity();
  for (int k = 0; k < kShrinkSteps; ++k) {
    const IntGrid grid = fit_grid(scheme, shrink_factor(k) * low, shrink_factor(k) * high);
    const double error =
        kernels.shrink_error(group, n, grid.scale, static_cast<float>(grid.zero), limits, unit, least);
    if (error < least) best = grid, least = error;
  }
  return best;
}

}  // namespace quantaria::ops
