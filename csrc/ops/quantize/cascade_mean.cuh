#pragma once

#include "simt/simt.h"

/// cascade_mean (cascade_mean.h) by one warp, bit for bit: each of its 4 accumulators of 8 lanes is a lane of
/// the warp.
namespace quantaria::ops {

inline constexpr int kCascadeLevels = 4;

/// The lane's part of the sum over `rows` rows of 32 values, folded level by level.
__device__ inline float cascade_sum(const float* values, int64_t rows) {
  int ceil_log2 = 0;
  while (rows > 1 && (rows - 1) >> ceil_log2 != 0) ++ceil_log2;
  const int power = ceil_log2 / kCascadeLevels > 4 ? ceil_log2 / kCascadeLevels : 4;
  const int64_t step = int64_t{1} << power;
  float level[kCascadeLevels] = {};
  int64_t row = 0;
  while (row + step <= rows) {
    for (const int64_t end = row + step; row < end; ++row)
      level[0] += simt::load(values + row * 32 + threadIdx.x);
#pragma unroll
    for (int i = 1; i < kCascadeLevels; ++i) {
      level[i] += level[i - 1];
      level[i - 1] = 0;
      if ((row & ((step - 1) << (i * power))) != 0) break;
    }
  }
  for (; row < rows; ++row) level[0] += simt::load(values + row * 32 + threadIdx.x);
#pragma unroll
  for (int i = 1; i < kCascadeLevels; ++i) level[0] += level[i];
  return level[0];
}

}  // namespace quantaria::ops
