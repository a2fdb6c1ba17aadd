#pragma once

#include <type_traits>

#include "ops/dequant_matmul/int8_fetch.cuh"
#include "ops/dequant_matmul/int8_results.cuh"

/// The outlier columns of LLM.int8, which a block multiplies apart after all others, and adds to its results
/// in shared memory.
namespace quantaria::ops {

/// Sixteen outlier columns: activations, and codes as values of their type; for float32 the weights
/// themselves, so that no sum is larger than the CPU's.
template <class Tile, class T>
struct OutlierTail {
  static constexpr int kColumns = 16;
  static constexpr int kPitch = kColumns + 16 / sizeof(T);  // rows of a fragment begin in different banks
  alignas(16) T x[Tile::kTileRows][kPitch];
  alignas(16) T codes[Tile::kTileCols][kPitch];
  float scale[Tile::kTileCols];  // of codes
};
struct NoOutliers {};

/// Outlier columns [first, first + 16) to shared memory, zeros past the last one.
template <class Tile, class T>
__device__ __forceinline__ void fetch_outliers(OutlierTail<Tile, T>& tail, const Int8Product& p,
                                               const TilePlace& place, int first, int count) {
  constexpr int kColumns = OutlierTail<Tile, T>::kColumns;
  const ConstMatrix& x = p.outliers.x;
  const CodedMatrix& m = p.weight.matrix;
  if (const int n = static_cast<int>(threadIdx.x); !std::is_same_v<T, float> && n < Tile::kTileCols)
    tail.scale[n] = place.col0 + n < m.out ? simt::load(m.floats + place.col0 + n) / m.divisor : 0.0f;
  for (int i = static_cast<int>(threadIdx.x); i < (Tile::kTileRows + Tile::kTileCols) * kColumns;
       i += Tile::kThreads) {
    const int k = i % kColumns;
    const int r = i / kColumns;
    const bool known = first + k < count;
    const int64_t col = known ? simt::load(p.outliers.columns + first + k) : 0;
    if (r < Tile::kTileRows) {
      const bool there = known && place.row0 + r < x.rows;
      tail.x[r][k] = there ? simt::load(reinterpret_cast<const T*>(x.data) + (place.row0 + r) * x.row_stride +
                                        col * x.col_stride)
                           : T{};
    } else {
      const int n = r - Tile::kTileRows;
      const bool there = known && place.col0 + n < m.out;
      const int64_t byte = (place.col0 + n) * (m.row_bits / 8) + col;
      const int code = there ? simt::load(reinterpret_cast<const uint8_t*>(m.words) + byte) - 128 : 0;
      if constexpr (std::is_same_v<T, float>)
        tail.codes[n][k] =
            there ? static_cast<float>(code) * simt::load(m.floats + place.col0 + n) / m.divisor : 0.0f;
      else
        tail.codes[n][k] = simt::from_float<T>(static_cast<float>(code));
    }
  }
}

/// The sums of x codes of 16 x 8 results of a warp from `row` and `col` on.
template <class T, class Tail>
__device__ __forceinline__ void multiply_outliers(const Tail& tail, int row, int col, int g, int t,
                                                  float (&sum)[4]) {
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll 1
    for (int k = 0; k < Tail::kColumns; ++k)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        sum[e] = fmaf(tail.x[row + e / 2 * 8 + g][k], tail.codes[col + t * 2 + e % 2][k], sum[e]);
  } else {
    uint32_t a[4];
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      a[half] = simt::load_shared<uint32_t>(&tail.x[row + half * 8 + g][t * 2]);
      a[half + 2] = simt::load_shared<uint32_t>(&tail.x[row + half * 8 + g][t * 2 + 8]);
    }
    const auto& codes = tail.codes[col + g];
    const uint32_t b[2] = {simt::load_shared<uint32_t>(&codes[t * 2]),
                           simt::load_shared<uint32_t>(&codes[t * 2 + 8])};
    simt::mma_m16n8k16<T>(sum, a, b);
  }
}

/// results += the outlier columns' products, sixteen columns after the other, each thread to those it has put
/// there. All threads of the block take part.
template <class Tile, class T>
__device__ __forceinline__ void add_outliers(OutlierTail<Tile, T>& tail, const Int8Product& p,
                                             const TilePlace& place, const WarpPlace<Tile>& warp,
                                             WarpResults<Tile>& results) {
  const int count = p.outliers.count ? simt::load(p.outliers.count) : 0;
#pragma unroll 1
  for (int first = 0; first < count; first += OutlierTail<Tile, T>::kColumns) {
    fetch_outliers(tail, p, place, first, count);
    __syncthreads();  // the columns are there for all
#pragma unroll 1
    for (int i = 0; i < Tile::kRows * Tile::kCols; ++i) {
      const int row = i / Tile::kCols * 16;
      const int col = i % Tile::kCols * 8;
      float sum[4] = {};
      multiply_outliers<T>(tail, warp.row + row, warp.col + col, warp.g, warp.t, sum);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float scale = std::is_same_v<T, float> ? 1.0f : tail.scale[warp.col + col + warp.t * 2 + e % 2];
        results.eight(row + e / 2 * 8 + warp.g, col / 8)[warp.t * 2 + e % 2] += sum[e] * scale;
      }
    }
    __syncthreads();  // all have left them
  }
}

}  // namespace quantaria::ops
