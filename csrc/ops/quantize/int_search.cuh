#pragma once

#include "ops/quantize/int_grid.cuh"
#include "ops/quantize/segments.cuh"

/// The search for the shrink factor of a group's range with the least sum |error|^2.4, in the sixteen lanes
/// and the order of sums of the CPU's (quantize_int_isa.cc): which factor wins depends on their last bits.
namespace quantaria::ops {

inline constexpr int kSearchThreads = 256;
inline constexpr int kSearchLanes = 16;  // that share a sum; two factors at once in a warp

/// x^1.2 for x >= 0: x (x z^4) with z = x^(-1/5) by Newton's iteration.
__device__ inline float power_1_2(float x) {
  const float exponent =
      static_cast<float>(static_cast<int32_t>(numerics::bits_of(x))) * -0.2f + 1.2f * 1064995000.0f;
  float z = numerics::float_of(static_cast<uint32_t>(static_cast<int32_t>(exponent)));
  for (int i = 0; i < 4; ++i) {
    const float z2 = z * z;
    z = z * (1.2f - 0.2f * ((x * z) * (z2 * z2)));
  }
  const float z2 = z * z;
  return x * ((x * z2) * z2);
}

/// A power of two that brings errors near 1.
__device__ inline float error_unit_of(float low, float high) {
  constexpr float kLeastNormal = 0x1p-126f;
  float most = -low > high ? -low : high;
  most = most > kLeastNormal ? most : kLeastNormal;
  const int exponent = static_cast<int>(numerics::bits_of(most) >> 23) - 127;
  const int back = -exponent < -126 ? -126 : -exponent > 126 ? 126 : -exponent;
  return numerics::power_of_two(back);
}

__device__ inline AffineGrid shrunk_grid(const IntRule& rule, int step, float low, float high) {
  const float factor = shrink_factor(step);
  return fit_int(rule, factor * low, factor * high);
}

/// sum (|error| unit)^2.4 over a segment, the same in all lanes of a half warp.
__device__ inline float shrink_error(const Walk& walk, const Segment& segment, const IntRule& rule,
                                     const AffineGrid& grid, float unit) {
  const GridCoder coder(rule, grid.scale, grid.zero);
  float sum = 0;
  for (int64_t j = threadIdx.x % kSearchLanes; j < segment.size; j += kSearchLanes) {
    const float w = walk.at(segment.row, segment.first + j);
    const float lost = (w - coder.kept(w)) * unit;
    sum += power_1_2(lost * lost);
  }
  for (int apart = kSearchLanes / 2; apart > 0; apart /= 2) sum += __shfl_xor_sync(~0u, sum, apart);
  return sum;
}

/// The best grid of each segment, a warp for each. Extrema of segment i: low[i], high[i].
template <class Fit>
__global__ void __launch_bounds__(kSearchThreads)
    search_segments(const __grid_constant__ Segments s, const float* low, const float* high,
                    const __grid_constant__ Fit fit) {
  const int half = static_cast<int>(threadIdx.x) % 32 / kSearchLanes;
  const int64_t stride = int64_t{gridDim.x} * (kSearchThreads / 32);
  const int64_t count = s.rows * s.per_row;
  for (int64_t i = int64_t{blockIdx.x} * (kSearchThreads / 32) + threadIdx.x / 32; i < count; i += stride) {
    const Segment segment = segment_at(s, i, false);
    const float least = simt::load(low + i);
    const float most = simt::load(high + i);
    const float unit = error_unit_of(least, most);
    int best = 0;
    float best_error = __builtin_inff();
    for (int k = 0; k < kShrinkSteps; k += 2) {
      const float mine =
          shrink_error(s.walk, segment, fit.rule, shrunk_grid(fit.rule, k + half, least, most), unit);
      // Both factors of the warp in their order: of equal errors, the larger range stays.
      for (int h = 0; h < 2; ++h) {
        const float error = __shfl_sync(~0u, mine, h * kSearchLanes);
        if (error < best_error) {
          best_error = error;
          best = k + h;
        }
      }
    }
    if (threadIdx.x % 32 == 0) {
      const AffineGrid grid = shrunk_grid(fit.rule, best, least, most);
      fit.put(i, grid);
    }
  }
}

struct SearchShared {
  double error[kShrinkSteps];
};

/// The grid of the factor whose errors, rows added in order, are least.
template <class Fit>
__global__ void __launch_bounds__(96) choose_shrink(const float* errors, int64_t rows, const float* low,
                                                    const float* high, const __grid_constant__ Fit fit) {
  auto& shared = simt::shared<SearchShared>();
  if (threadIdx.x < kShrinkSteps) {
    double sum = 0;
    for (int64_t row = 0; row < rows; ++row)
      sum += static_cast<double>(simt::load(errors + row * kShrinkSteps + threadIdx.x));
    shared.error[threadIdx.x] = sum;
  }
  __syncthreads();  // the sums of all factors are there
  if (threadIdx.x != 0) return;
  const float least = simt::load(low);
  const float most = simt::load(high);
  int best = 0;
  for (int k = 1; k < kShrinkSteps; ++k)
    if (shared.error[k] < shared.error[best]) best = k;
  // An all-zero weight has no range to shrink, and any factor gives its grid.
  fit.put(0, shrunk_grid(fit.rule, best, least, most));
}

}  // namespace quantaria::ops
