#pragma once

#include "core/matrix.h"
#include "cuda/grid.h"
#include "cuda/verdict.h"
#include "ops/copy/cast_value.cuh"
#include "simt/simt.h"

/// The runs of a weight's elements that share a constant, and the constants that follow from their extrema.
namespace quantaria::ops {

inline constexpr int kSegmentThreads = 256;

/// A weight as quantization walks it: by rows, by columns (as rows of its transpose), or flat.
struct Walk {
  ConstMatrix w;            // of the walk: transposed if `by_columns`
  bool by_columns = false;  // rows of w are columns of the weight
  bool across = false;      // columns run through more than one row: the index into the row-major weight
  bool through_half = false;
  float bound = __builtin_inff();  // magnitudes from here on are refused

  __device__ float at(int64_t row, int64_t col) const {
    if (across) {
      row = col / w.cols;
      col = col % w.cols;
    }
    return load_float(w.dtype, w.data, row * w.row_stride + col * w.col_stride);
  }
  /// Its value as codes see it.
  __device__ float seen(float value) const {
    return through_half ? numerics::float_from_half(numerics::half_from_float(value)) : value;
  }
  /// Row-major in the weight.
  __device__ int64_t index(int64_t row, int64_t col) const {
    if (across) return col;
    return by_columns ? col * w.rows + row : row * w.cols + col;
  }
};

/// Segments of `length` elements in rows of `row_length`, the last of a row short.
struct Segments {
  Walk walk;
  int64_t rows;
  int64_t row_length;
  int64_t length;
  int64_t per_row;

  int64_t count() const { return rows * per_row; }
  /// Whether the elements side by side in memory are those of neighbouring rows.
  bool side_by_side() const {
    return !walk.across && walk.w.row_stride < walk.w.col_stride && walk.w.col_stride != 1;
  }
};

struct Segment {
  int64_t row, first, size, index;
};

/// Segment i of the walk; neighbours lie in neighbouring rows if `along_rows`.
__device__ inline Segment segment_at(const Segments& s, int64_t i, bool along_rows) {
  const int64_t row = along_rows ? i % s.rows : i / s.per_row;
  const int64_t group = along_rows ? i / s.rows : i % s.per_row;
  const int64_t first = group * s.length;
  const int64_t left = s.row_length - first;
  return {row, first, left < s.length ? left : s.length, row * s.per_row + group};
}

/// fit.store(segment, low, high) for each segment, low <= 0 <= high its extrema. Lanes (1 or 32) threads for
/// each: single ones where neighbouring threads then read neighbouring elements.
template <int Lanes, class Fit>
__global__ void __launch_bounds__(kSegmentThreads)
    fit_segments(const __grid_constant__ Segments s, const __grid_constant__ Fit fit,
                 cuda::Verdict* verdict) {
  const int lane = static_cast<int>(threadIdx.x) % Lanes;
  const int64_t stride = int64_t{gridDim.x} * (kSegmentThreads / Lanes);
  const int64_t count = s.rows * s.per_row;
  for (int64_t i = int64_t{blockIdx.x} * (kSegmentThreads / Lanes) + threadIdx.x / Lanes; i < count;
       i += stride) {
    const Segment segment = segment_at(s, i, Lanes == 1);
    float low = 0;
    float high = 0;
    for (int64_t j = lane; j < segment.size; j += Lanes) {
      const float given = s.walk.at(segment.row, segment.first + j);
      if (!(fabsf(given) < s.walk.bound)) cuda::refuse(verdict, s.walk.index(segment.row, segment.first + j));
      const float value = s.walk.seen(given);
      low = value < low ? value : low;
      high = value > high ? value : high;
    }
    for (int apart = Lanes / 2; apart > 0; apart /= 2) {
      const float other_low = __shfl_xor_sync(~0u, low, apart);
      const float other_high = __shfl_xor_sync(~0u, high, apart);
      low = other_low < low ? other_low : low;
      high = other_high > high ? other_high : high;
    }
    if (lane == 0) fit.store(segment.index, low, high);
  }
}

struct RangeShared {
  float low[kSegmentThreads / 32];
  float high[kSegmentThreads / 32];
};

/// fit.store(0, low, high) of `count` extrema, by one block.
template <class Fit>
__global__ void __launch_bounds__(kSegmentThreads)
    fit_all(const float* lows, const float* highs, int64_t count, const __grid_constant__ Fit fit) {
  auto& shared = simt::shared<RangeShared>();
  float low = 0;
  float high = 0;
  for (int64_t i = threadIdx.x; i < count; i += kSegmentThreads) {
    const float next_low = simt::load(lows + i);
    const float next_high = simt::load(highs + i);
    low = next_low < low ? next_low : low;
    high = next_high > high ? next_high : high;
  }
  for (int apart = 16; apart > 0; apart /= 2) {
    const float other_low = __shfl_xor_sync(~0u, low, apart);
    const float other_high = __shfl_xor_sync(~0u, high, apart);
    low = other_low < low ? other_low : low;
    high = other_high > high ? other_high : high;
  }
  if (threadIdx.x % 32 == 0) {
    shared.low[threadIdx.x / 32] = low;
    shared.high[threadIdx.x / 32] = high;
  }
  __syncthreads();  // every warp's extrema are there
  if (threadIdx.x != 0) return;
  for (int i = 1; i < kSegmentThreads / 32; ++i) {
    low = shared.low[i] < low ? shared.low[i] : low;
    high = shared.high[i] > high ? shared.high[i] : high;
  }
  fit.store(0, low, high);
}

/// Keeps the larger magnitude.
struct FitAbsmax {
  float* absmax;
  __device__ void store(int64_t segment, float low, float high) const {
    simt::store(absmax + segment, -low > high ? -low : high);
  }
};

/// Keeps the extrema.
struct StoreRange {
  float* low;
  float* high;
  __device__ void store(int64_t segment, float least, float most) const {
    simt::store(low + segment, least);
    simt::store(high + segment, most);
  }
};

template <class Fit>
void launch_fit(simt::Stream stream, const Segments& s, const Fit& fit, cuda::Verdict* verdict) {
  if (s.count() == 0) return;
  if (s.side_by_side())
    simt::launch(fit_segments<1, Fit>, cuda::blocks_for(s.count(), kSegmentThreads), dim3(kSegmentThreads), 0,
                 stream, s, fit, verdict);
  else
    simt::launch(fit_segments<32, Fit>, cuda::blocks_for(s.count(), kSegmentThreads / 32),
                 dim3(kSegmentThreads), 0, stream, s, fit, verdict);
}

/// One constant for the whole weight: extrema of pieces first, which `room` holds (whole_workspace floats).
inline constexpr int64_t kPieceLength = 4096;
inline Segments pieces_of(const Walk& walk) {
  const int64_t cols = walk.w.cols;
  return {walk, walk.w.rows, cols, kPieceLength, (cols + kPieceLength - 1) / kPieceLength};
}
inline int64_t whole_workspace(int64_t rows, int64_t cols) {
  return 2 * rows * ((cols + kPieceLength - 1) / kPieceLength);
}
template <class Fit>
void launch_fit_whole(simt::Stream stream, const Walk& walk, const Fit& fit, float* room,
                      cuda::Verdict* verdict) {
  const Segments pieces = pieces_of(walk);
  const StoreRange range{room, room + pieces.count()};
  launch_fit(stream, pieces, range, verdict);
  simt::launch(fit_all<Fit>, dim3(1), dim3(kSegmentThreads), sizeof(RangeShared), stream,
               static_cast<const float*>(range.low), static_cast<const float*>(range.high), pieces.count(),
               fit);
}

}  // namespace quantaria::ops
