#include "ops/quantize/int_grid.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"

namespace quantaria::ops {
namespace {

struct ScaleType {
  float smallest;
  float largest;
};

ScaleType facts_of_scale(DType dtype) {
  switch (dtype) {
    case DType::float16:
      return {numerics::kHalfMinPositive, numerics::kHalfMax};
    case DType::bfloat16:
      return {numerics::kBfloat16MinPositive, numerics::kBfloat16Max};
    default:
      return {std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::max()};
  }
}

float rounded_to(float x, DType dtype) {
  switch (dtype) {
    case DType::float16:
      return numerics::float_from_half(numerics::half_from_float(x));
    case DType::bfloat16:
      return numerics::float_from_bfloat16(numerics::bfloat16_from_float(x));
    default:
      return x;
  }
}

/// (high - low) / steps, also where the difference is beyond float32.
float step_between(float low, float high, float steps) {
  const float width = high - low;
  return std::isinf(width) ? high / steps - low / steps : width / steps;
}

IntGrid fit_symmetric(const IntScheme& scheme, float absmax) {
  if (absmax == 0) return {1.0f, 0};
  const float positive_codes = static_cast<float>((1 << (scheme.bits - 1)) - 1);
  const float all_steps = static_cast<float>((1 << scheme.bits) - 1);
  const float scale = scheme.full_range ? step_between(-absmax, absmax, all_steps) : absmax / positive_codes;
  return {round_scale(scale, scheme.scale_dtype), 0};
}

IntGrid fit_affine(const IntScheme& scheme, float low, float high) {
  if (low == 0 && high == 0) low = -1, high = 1;
  const float all_steps = static_cast<float>((1 << scheme.bits) - 1);
  const float scale = round_scale(step_between(low, high, all_steps), scheme.scale_dtype);
  // A rounded scale can push the zero just past the last code.
  const float zero = std::clamp(std::nearbyint(-low / scale), 0.0f, all_steps);
  return {scale, static_cast<int32_t>(zero)};
}

}  // namespace

void check_scheme(const IntScheme& scheme) {
  if ((scheme.bits < 2 || scheme.bits > 8) && scheme.bits != 16)
    fail(ErrorCode::argument, "bits: ", scheme.bits, " given, 2..8 or 16 expected");
  if (scheme.granularity == Granularity::group && scheme.group_size < 1)
    fail(ErrorCode::argument, "groupSize: ", scheme.group_size, " given, at least 1 expected");
  if (scheme.scale_dtype != DType::float32 && scheme.scale_dtype != DType::float16 &&
      scheme.scale_dtype != DType::bfloat16)
    fail(ErrorCode::dtype, "scaleDtype: ", name_of(scheme.scale_dtype),
         " given, float32, float16 or bfloat16 expected");
}

IntLimits limits_of(const IntScheme& scheme) {
  if (!scheme.symmetric) return {0.0f, static_cast<float>((1 << scheme.bits) - 1), 0};
  const int half = 1 << (scheme.bits - 1);
  return {static_cast<float>(scheme.full_range ? -half : 1 - half), static_cast<float>(half - 1), half};
}

int64_t group_length(const IntScheme& scheme, int64_t in) {
  return scheme.granularity == Granularity::group ? scheme.group_size : std::max<int64_t>(1, in);
}

float round_scale(float scale, DType dtype) {
  const ScaleType type = facts_of_scale(dtype);
  return std::clamp(rounded_to(scale, dtype), type.smallest, type.largest);
}

IntGrid fit_grid(const IntScheme& scheme, float low, float high) {
  return scheme.symmetric ? fit_symmetric(scheme, std::max(-low, high)) : fit_affine(scheme, low, high);
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
