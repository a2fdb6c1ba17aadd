#pragma once

#include "numerics/float8.h"
#include "ops/quantize/book_rank.cuh"
#include "ops/quantize/int_grid.cuh"
#include "ops/quantize/int_search.cuh"
#include "ops/quantize/mx_element.cuh"

/// Single weights and single groups on GPUs, for what decides about them one by one: with the CPU's steps in
/// their order, so that codes and constants are the same.
namespace quantaria::ops {

/// What a weight becomes: its stored code, and the value of that.
struct Rounded {
  uint8_t code;
  float kept;
};

__device__ inline Rounded round_int(const IntRule& rule, float scale, float zero, float w) {
  const GridCoder coder(rule, scale, zero);
  const float magic = coder.rounded(w);
  return {static_cast<uint8_t>(numerics::bits_of(magic) + static_cast<uint32_t>(coder.offset)),
          (magic - numerics::kRoundingMagic) * scale};
}

template <class Book>
__device__ Rounded round_book(const Book& book, float absmax, float w) {
  const uint32_t rank = rank_among(book.thresholds, BlockNormaliser(absmax).normalised(w));
  if constexpr (requires { book.patterns; }) {
    const uint8_t code = book.patterns[rank];
    return {code, book.decoded[code] * absmax};
  } else {
    return {static_cast<uint8_t>(rank), book.values[rank] * absmax};
  }
}

__device__ inline Rounded round_fp8(Float8 format, float scale, float w) {
  if (format == Float8::e4m3) {
    const auto code = static_cast<uint8_t>(numerics::encode_saturating<numerics::kE4M3>(w / scale));
    return {code, numerics::float_from_e4m3(code) * scale};
  }
  const auto code = static_cast<uint8_t>(numerics::encode_saturating<numerics::kE5M2>(w / scale));
  return {code, numerics::float_from_e5m2(code) * scale};
}

__device__ inline float decode_mx_element(MxElement element, uint32_t code) {
  switch (element) {
    case MxElement::e4m3:
      return numerics::decode_finite<numerics::kE4M3>(code);
    case MxElement::e5m2:
      return numerics::decode_finite<numerics::kE5M2>(code);
    case MxElement::e3m2:
      return numerics::decode_finite<numerics::kE3M2>(code);
    case MxElement::e2m3:
      return numerics::decode_finite<numerics::kE2M3>(code);
    case MxElement::e2m1:
      return numerics::decode_finite<numerics::kE2M1>(code);
    default:
      return static_cast<float>(static_cast<int8_t>(code)) * (1.0f / 64);
  }
}

/// In a block whose scale is 2^(scale - 127).
__device__ inline Rounded round_mx(MxElement element, MxRounding rounding, uint8_t scale, float w) {
  const uint32_t code = encode_mx_element(element, rounding, w * numerics::inverse_of_e8m0(scale));
  return {static_cast<uint8_t>(code), decode_mx_element(element, code) * numerics::float_from_e8m0(scale)};
}

/// The ends of `n` values value(i), widened to hold 0, as a whole warp finds them. All lanes get them.
struct Ends {
  float low;
  float high;
};
template <class Value>
__device__ Ends ends_of(int64_t n, const Value& value) {
  Ends ends{0, 0};
  for (int64_t i = static_cast<int>(threadIdx.x) % 32; i < n; i += 32) {
    const float w = value(i);
    ends.low = w < ends.low ? w : ends.low;
    ends.high = w > ends.high ? w : ends.high;
  }
  for (int apart = 16; apart > 0; apart /= 2) {
    const float low = __shfl_xor_sync(~0u, ends.low, apart);
    const float high = __shfl_xor_sync(~0u, ends.high, apart);
    ends.low = low < ends.low ? low : ends.low;
    ends.high = high > ends.high ? high : ends.high;
  }
  return ends;
}

/// search_grid (ops/quantize/int_grid.h) of `n` values by a whole warp, which tries two shrink factors at a
/// time. All lanes get the grid.
template <class Value>
__device__ AffineGrid search_values(const IntRule& rule, const Ends& ends, int64_t n, const Value& value) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const float unit = error_unit_of(ends.low, ends.high);
  float least = __builtin_inff();
  int best = 0;
  for (int k = lane / kSearchLanes; k < kShrinkSteps; k += 32 / kSearchLanes) {
    const AffineGrid grid = shrunk_grid(rule, k, ends.low, ends.high);
    const GridCoder coder(rule, grid.scale, grid.zero);
    float error = 0;
    for (int64_t i = lane % kSearchLanes; i < n; i += kSearchLanes) {
      const float w = value(i);
      const float lost = (w - coder.kept(w)) * unit;
      error += power_1_2(lost * lost);
    }
    for (int apart = kSearchLanes / 2; apart > 0; apart /= 2) error += __shfl_xor_sync(~0u, error, apart);
    if (error < least) {
      least = error;
      best = k;
    }
  }
  const float other = __shfl_xor_sync(~0u, least, kSearchLanes);
  const int others_best = __shfl_xor_sync(~0u, best, kSearchLanes);
  // Of equal errors, the larger range.
  if (other < least || (other == least && others_best < best)) best = others_best;
  return shrunk_grid(rule, best, ends.low, ends.high);
}

}  // namespace quantaria::ops
