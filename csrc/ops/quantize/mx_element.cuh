#pragma once

#include "numerics/bits.h"
#include "numerics/e8m0.h"
#include "numerics/small_float.h"
#include "ops/quantize/quantize.h"
#include "simt/simt.h"

/// Elements of MX blocks on GPUs.
namespace quantaria::ops {

/// Two's complement with 6 bits behind the point, -127/64 .. 127/64.
__device__ inline uint32_t encode_mx_int8(MxRounding rounding, float x) {
  const float clamped = x < -127.0f / 64 ? -127.0f / 64 : x > 127.0f / 64 ? 127.0f / 64 : x;
  const float steps = clamped * 64.0f;
  if (rounding == MxRounding::even) return numerics::bits_of(steps + numerics::kRoundingMagic) & 0xffu;
  const int truncated = static_cast<int>(steps);
  const float rest = steps - static_cast<float>(truncated);
  const int away = rounding == MxRounding::nearest ? (rest >= 0.5f) - (rest <= -0.5f) : 0;
  return static_cast<uint32_t>(truncated + away) & 0xffu;
}

template <numerics::SmallFloat F>
__device__ uint32_t encode_mx_float(MxRounding rounding, float x) {
  switch (rounding) {
    case MxRounding::even:
      return numerics::encode_saturating<F, numerics::Rounding::even>(x);
    case MxRounding::nearest:
      return numerics::encode_saturating<F, numerics::Rounding::nearest>(x);
    default:
      return numerics::encode_saturating<F, numerics::Rounding::floor>(x);
  }
}

/// The code of x, which the scale has been taken off.
__device__ inline uint32_t encode_mx_element(MxElement element, MxRounding rounding, float x) {
  switch (element) {
    case MxElement::e4m3:
      return encode_mx_float<numerics::kE4M3>(rounding, x);
    case MxElement::e5m2:
      return encode_mx_float<numerics::kE5M2>(rounding, x);
    case MxElement::e3m2:
      return encode_mx_float<numerics::kE3M2>(rounding, x);
    case MxElement::e2m3:
      return encode_mx_float<numerics::kE2M3>(rounding, x);
    case MxElement::e2m1:
      return encode_mx_float<numerics::kE2M1>(rounding, x);
    default:
      return encode_mx_int8(rounding, x);
  }
}

}  // namespace quantaria::ops
