#pragma once

#include "ops/dequant_matmul/coded_tile.cuh"
#include "ops/gemm/epilogue.cuh"

/// From a warp's sums to the result. In its registers a thread has pairs of columns of many rows: through
/// shared memory it gets eight columns of a row, which it writes at once, in a loop instead of many copies
/// of the code that knows dtypes and strides.
namespace quantaria::ops {

/// What a warp makes. Blocks of eight columns change places by the row, so that the four rows that a half
/// warp writes at once meet all banks.
template <class Tile>
struct WarpResults {
  static constexpr int kRows = Tile::kRows * 16;
  static constexpr int kBlocks = Tile::kCols;
  alignas(16) float total[kRows][kBlocks * 8];

  __device__ __forceinline__ float* eight(int row, int block) {
    static_assert((kBlocks & (kBlocks - 1)) == 0);
    return &total[row][(block ^ (row & (kBlocks - 1))) * 8];
  }
};

/// Eight floats from `from` on, plus `bias`.
struct EightResults {
  float value[8];

  __device__ __forceinline__ EightResults(const float* from, const float* bias) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const auto four = simt::load_shared<uint4>(from + 4 * i);
      const uint32_t words[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) value[4 * i + e] = simt::bits<float>(words[e]);
    }
    if (!bias) return;
#pragma unroll
    for (int e = 0; e < 8; ++e) value[e] += bias[e];
  }

  template <class T>
  __device__ __forceinline__ void store(std::byte* to) const {
    simt::store(reinterpret_cast<uint4*>(to),
                uint4{simt::pack<T>(value[0], value[1]), simt::pack<T>(value[2], value[3]),
                      simt::pack<T>(value[4], value[5]), simt::pack<T>(value[6], value[7])});
  }
};

/// In shared memory: the bias of a tile's columns.
template <class Tile>
struct TileBias {
  alignas(16) float value[Tile::kTileCols];

  /// A thread for each. The barrier that makes them known to all has to follow.
  __device__ __forceinline__ void find(const Epilogue& epilogue, const TilePlace& place) {
    const auto n = static_cast<int>(threadIdx.x);
    if (!epilogue.bias || n >= Tile::kTileCols) return;
    const int64_t col = place.col0 + n;
    value[n] = col < epilogue.c.cols
                   ? load_real(epilogue.bias_dtype, epilogue.bias, col * epilogue.bias_stride)
                   : 0.0f;
  }
};

template <class Tile>
__device__ __forceinline__ void put_results(const WarpPlace<Tile>& warp, WarpResults<Tile>& results,
                                            const float (&total)[Tile::kRows][Tile::kCols][4]) {
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half)
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e)
          results.eight(i * 16 + half * 8 + warp.g, j)[warp.t * 2 + e] = total[i][j][half * 2 + e];
}

/// Writes what the warp's threads have put there; of pairs what SwiGLU makes of them.
template <class Tile>
__device__ __forceinline__ void write_results(const ProductTiles& tiles, const TilePlace& place,
                                              const WarpPlace<Tile>& warp, const Epilogue& epilogue,
                                              const TileBias<Tile>& bias, WarpResults<Tile>& results) {
  using Results = WarpResults<Tile>;
  __syncwarp();  // the warp's sums are there
  const Matrix& c = epilogue.c;
  const int64_t bytes = size_of(c.dtype);
  const bool vectors = bytes == 2 && c.col_stride == 1 && c.row_stride % 8 == 0 &&
                       reinterpret_cast<uintptr_t>(c.data) % 16 == 0 && !tiles.paired;
#pragma unroll 1
  for (int at = static_cast<int>(threadIdx.x) % 32; at < Results::kRows * Results::kBlocks; at += 32) {
    const int block = at % Results::kBlocks;
    const float* const from = results.eight(at / Results::kBlocks, block);
    const int64_t row = result_row_of(tiles, place.row0 + warp.row + at / Results::kBlocks, place.row_end);
    const int n = warp.col + block * 8;
    if (row < 0 || row >= c.rows) continue;
    if (vectors && place.col0 + n + 8 <= c.cols) {
      const EightResults eight(from, epilogue.bias ? bias.value + n : nullptr);
      std::byte* const to = c.data + (row * c.row_stride + place.col0 + n) * 2;
      if (c.dtype == DType::float16)
        eight.template store<simt::Half>(to);
      else
        eight.template store<simt::Bfloat16>(to);
      continue;
    }
    const int step = tiles.paired ? 2 : 1;
#pragma unroll 1
    for (int e = 0; e < 8; e += step) {
      const int64_t col = place.col0 + (n + e) / step;
      epilogue.write(row, col, tiles.paired ? swiglu(from[e], from[e + 1]) : from[e]);
    }
  }
}

}  // namespace quantaria::ops
