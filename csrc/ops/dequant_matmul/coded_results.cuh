#pragma once

#include "ops/dequant_matmul/coded_tile.cuh"
#include "ops/gemm/epilogue.cuh"

/// How a tile's sums leave a block: by way of shared memory, from which neighbouring threads write
/// neighbours. Straight from the registers, each of a thread's sums would have the epilogue's code to itself,
/// which was two thirds of a kernel.
namespace quantaria::ops {

/// In the place of the stages, which nobody needs any more.
template <class Tile>
struct TileResults {
  static constexpr int kPitch = Tile::kTileCols + 4;  // every other row begins eight banks on
  float sum[Tile::kTileRows][kPitch];
};

/// Of pairs what SwiGLU makes of them. The threads of a block, all of them.
template <class Tile>
__device__ __forceinline__ void write_results(const ProductTiles& tiles, const TilePlace& place,
                                              const WarpPlace<Tile>& warp, const Epilogue& epilogue,
                                              const float (&total)[Tile::kRows][Tile::kCols][4],
                                              TileResults<Tile>& results) {
  __syncthreads();  // all have left the stages
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
    for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        results.sum[warp.row + i * 8 + warp.t * 2 + e % 2][warp.col + j * 16 + warp.g + e / 2 * 8] =
            total[i][j][e];
  __syncthreads();  // the sums are there for all

  const Matrix& c = epilogue.c;
  const int cols = tiles.paired ? Tile::kTileCols / 2 : Tile::kTileCols;
  const int thread = static_cast<int>(threadIdx.x);
  const int own = thread % cols;  // the same in every row
  const int64_t col = place.col0 + own;
  if (col >= c.cols) return;
  const float bias =
      epilogue.bias ? load_real(epilogue.bias_dtype, epilogue.bias, col * epilogue.bias_stride) : 0.0f;
  constexpr int kRun = Tile::kPairRun;
  const int n = tiles.paired ? own / kRun * 2 * kRun + own % kRun : own;
#pragma unroll 1
  for (int r = thread / cols; r < Tile::kTileRows; r += Tile::kThreads / cols) {
    const int64_t row = result_row_of(tiles, place.row0 + r, place.row_end);
    if (row < 0 || row >= c.rows) continue;
    const float first = results.sum[r][n];
    float value = tiles.paired ? swiglu(first, results.sum[r][n + kRun]) : first;
    if (epilogue.bias) value += bias;
    store_real(c.dtype, c.data, row * c.row_stride + col * c.col_stride, value);
  }
}

}  // namespace quantaria::ops
