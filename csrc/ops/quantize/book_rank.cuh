#pragma once

#include "numerics/bits.h"
#include "numerics/code_books.h"
#include "simt/simt.h"

/// Code books on GPUs.
namespace quantaria::ops {

/// What a block's elements are multiplied by: 1 / absmax, in two factors because the reciprocal of an absmax
/// under 2^-128 is beyond float32. A block of zeros has 0.
struct BlockNormaliser {
  float first = 1;
  float second = 0;

  __device__ explicit BlockNormaliser(float absmax) {
    const float reciprocal = absmax == 0.0f ? 0.0f : 1.0f / absmax;
    if (numerics::is_finite(reciprocal)) {
      second = reciprocal;
    } else {
      first = 0x1p64f;
      second = 1.0f / (absmax * 0x1p64f);
    }
  }
  __device__ float normalised(float w) const { return w * first * second; }
};

/// The number of the rising thresholds that lie under v; Count is a power of two, the last threshold
/// infinite.
template <int Count>
__device__ inline uint32_t rank_among(const float (&thresholds)[Count], float v) {
  uint32_t rank = 0;
#pragma unroll
  for (uint32_t step = Count / 2; step > 0; step /= 2)
    if (v > thresholds[rank + step - 1]) rank += step;
  return rank;
}

}  // namespace quantaria::ops
