#pragma once

#include "ops/dequant_matmul/coded_value.cuh"
#include "ops/gemm/product_tiles.cuh"

/// What every loop of products with quantized weights begins and ends with, whatever its operands are.
namespace quantaria::ops {

/// How a block's tile is shared out: Across warps side by side, Down warps above each other, each with Rows x
/// Cols fragments. Step columns of the weight at a time, Stages of them in shared memory.
template <int FragmentRows, int FragmentCols, int Down, int Across, int Rows, int Cols, int Step, int Stages,
          int Blocks>
struct FragmentTile {
  static constexpr int kFragmentRows = FragmentRows, kFragmentCols = FragmentCols;
  static constexpr int kDown = Down, kAcross = Across, kRows = Rows, kCols = Cols, kStep = Step,
                       kStages = Stages;
  static constexpr int kBlocks = Blocks;  // that a multiprocessor is to hold
  static constexpr int kTileRows = Down * Rows * FragmentRows;
  static constexpr int kTileCols = Across * Cols * FragmentCols;
  static constexpr int kThreads = Down * Across * 32;
  static constexpr int kRuns = Step / 32;  // of 32 columns: the least that shares a scale
  static_assert(kRuns % 2 == 0);
  static_assert(kThreads >= kTileRows + 2);
};

/// Fragments of 16 rows of the left factor and 8 of the weight.
template <int Down, int Across, int Rows, int Cols, int Step, int Stages, int Blocks>
struct CodedTile : FragmentTile<16, 8, Down, Across, Rows, Cols, Step, Stages, Blocks> {
  static constexpr bool kTurned = false;
  static constexpr int kPairRun = 1;  // gate and up take turns: a thread's neighbours are both sums of one
};

/// Fragments of 16 rows of the weight and 8 of the left factor: the transposed product. Where that factor has
/// 8 rows at most, none of a fragment is wasted on rows that are not there.
template <int Down, int Across, int Rows, int Cols, int Step, int Stages, int Blocks>
struct TurnedTile : FragmentTile<8, 16, Down, Across, Rows, Cols, Step, Stages, Blocks> {
  static constexpr bool kTurned = true;
  static constexpr int kPairRun = 8;  // both sums of a pair are a thread's, in rows g and g + 8 of a fragment
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

/// The part of a tile that a warp makes, and of that the part of a lane: of each fragment's result two rows
/// and two columns.
template <class Tile>
struct WarpPlace {
  int row = static_cast<int>(threadIdx.x) / 32 / Tile::kAcross * Tile::kRows * Tile::kFragmentRows;
  int col = static_cast<int>(threadIdx.x) / 32 % Tile::kAcross * Tile::kCols * Tile::kFragmentCols;
  int g = static_cast<int>(threadIdx.x) % 32 / 4;  // whose row of either factor, of a fragment
  int t = static_cast<int>(threadIdx.x) % 4;       // whose share of a run

  __device__ __forceinline__ int row_of(int i, int r) const {
    return row + i * Tile::kFragmentRows + (Tile::kTurned ? t * 2 + r : g + r * 8);
  }
  __device__ __forceinline__ int col_of(int j, int c) const {
    return col + j * Tile::kFragmentCols + (Tile::kTurned ? g + c * 8 : t * 2 + c);
  }
  /// Which of a fragment's four sums.
  static constexpr __device__ int sum_of(int r, int c) { return Tile::kTurned ? c * 2 + r : r * 2 + c; }
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
    for (int r = 0; r < 2; ++r) {
      const int64_t row = result_row_of(tiles, place.row0 + warp.row_of(i, r), place.row_end);
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j) {
        const float first = total[i][j][warp.sum_of(r, 0)];
        const float second = total[i][j][warp.sum_of(r, 1)];
        const int64_t col = place.col0 + column_of<Tile::kPairRun>(tiles, warp.col_of(j, 0)).col;
        write(row, col, tiles.paired ? swiglu(first, second) : first);
        if (!tiles.paired) write(row, col + Tile::kPairRun, second);
      }
    }
}

}  // namespace quantaria::ops
