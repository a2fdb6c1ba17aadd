#pragma once

#include "ops/dequant_matmul/coded_value.cuh"
#include "ops/gemm/product_tiles.cuh"

/// What every loop of products with quantized weights begins and ends with, whatever its operands are.
namespace quantaria::ops {

/// How a block's tile is shared out: Across warps side by side, Down warps above each other, each with Rows x
/// 16 rows and Cols x 8 columns. Step columns of the weight at a time, Stages of them in shared memory.
template <int Down, int Across, int Rows, int Cols, int Step, int Stages, int Blocks>
struct CodedTile {
  static constexpr int kDown = Down, kAcross = Across, kRows = Rows, kCols = Cols, kStep = Step,
                       kStages = Stages;
  static constexpr int kBlocks = Blocks;  // that a multiprocessor is to hold
  static constexpr int kTileRows = Down * Rows * 16;
  static constexpr int kTileCols = Across * Cols * 8;
  static constexpr int kThreads = Down * Across * 32;
  static constexpr int kRuns = Step / 32;  // of 32 columns: the least that shares a scale
  static constexpr int kPairRun = 1;  // gate and up take turns: a thread's neighbours are both sums of one
  static_assert(kRuns % 2 == 0);
  static_assert(kThreads >= kTileRows + 2);
};

/// In shared memory: what a tile's rows and columns are made of.
template <class Tile>
struct TileFactors {
  int64_t left[Tile::kTileRows];  // where each row of the left factor begins; -1 if there is none
  CodedSource right[2];           // of a plain product the first one alone
  TilePlace place;                // kept here, as nobody asks for it while sums take up the registers

  /// A thread for each. The barrier that makes them known to all has to follow.
  __device__ __forceinline__ void find(const ProductTiles& tiles, const TilePlace& found, int64_t left_rows,
                                       int64_t left_stride, const CodedSource* sources,
                                       const CodedSource& own) {
    const int thread = static_cast<int>(threadIdx.x);
    if (thread == 0) place = found;
    if (thread < Tile::kTileRows) {
      const int64_t row = left_row_of(tiles, found.row0 + thread, found.row_end, left_rows);
      left[thread] = row < 0 ? -1 : row * left_stride;
    } else if (const int factor = thread - Tile::kTileRows; factor <= (tiles.paired ? 1 : 0)) {
      const int64_t source = int64_t{found.group} * (tiles.paired ? 2 : 1) + factor;
      right[factor] = sources ? simt::load(sources + source) : own;
    }
  }
};

/// The part of a tile that a warp makes, and of that the part of a lane.
template <class Tile>
struct WarpPlace {
  int row = static_cast<int>(threadIdx.x) / 32 / Tile::kAcross * Tile::kRows * 16;
  int col = static_cast<int>(threadIdx.x) / 32 % Tile::kAcross * Tile::kCols * 8;
  int g = static_cast<int>(threadIdx.x) % 32 / 4;  // a fragment's row, and the column of its right factor
  int t = static_cast<int>(threadIdx.x) % 4;       // whose share of a run, and of a result's columns
};

/// write(row, column, value) for each element that this thread has the sum of; of pairs what SwiGLU makes of
/// them. Rows may be -1, and columns past the last one.
template <class Tile, class Write>
__device__ __forceinline__ void write_totals(const ProductTiles& tiles, const TilePlace& place,
                                             const WarpPlace<Tile>& warp,
                                             const float (&total)[Tile::kRows][Tile::kCols][4],
                                             const Write& write) {
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row =
          result_row_of(tiles, place.row0 + warp.row + i * 16 + warp.g + half * 8, place.row_end);
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j) {
        const int n = warp.col + j * 8 + warp.t * 2;
        const float first = total[i][j][half * 2];
        const float second = total[i][j][half * 2 + 1];
        const int64_t col = place.col0 + column_of<Tile::kPairRun>(tiles, n).col;
        write(row, col, tiles.paired ? swiglu(first, second) : first);
        if (!tiles.paired) write(row, col + 1, second);
      }
    }
}

}  // namespace quantaria::ops
