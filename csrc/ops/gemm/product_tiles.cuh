#pragma once

#include "ops/gemm/swiglu.cuh"
#include "simt/simt.h"

/// Which part of a product a block makes: the same loops run plain products, in which all rows meet one right
/// factor, and grouped ones, in which each group of rows (an expert's) meets its own.
namespace quantaria::ops {

/// Rows [first, end) of a grouped product, at most a tile of them, of one group; none if group < 0.
struct RowTile {
  int32_t group;
  int32_t first;
  int32_t end;
};

/// What a product is cut into. Grouped: `tiles` lie in device memory and are written by a kernel before this
/// one, so the host never learns how many rows a group has; their number is a bound, and blocks without work
/// leave at once.
struct ProductTiles {
  int64_t row_tiles = 0;
  const RowTile* tiles = nullptr;       // [row_tiles], or null for a plain product
  const int32_t* left_order = nullptr;  // row r reads row left_order[r] / share of the left factor; null: r
  int32_t share = 1;
  const int32_t* result_order = nullptr;  // row r is written to row result_order[r]; null: r
  bool paired = false;                    // two right factors, gate and up: silu(x gate) * (x up) is written
};

/// Rows of a tile of dense products.
inline constexpr int kDenseTileRows = 64;
inline constexpr int kFmaTileRows = 64;

/// A plain product's, of tiles of so many rows.
inline ProductTiles tiles_of_rows(int64_t rows, int tile_rows) {
  ProductTiles tiles;
  tiles.row_tiles = (rows + tile_rows - 1) / tile_rows;
  return tiles;
}

/// Tiles side by side: `cols` are those of the result.
inline int64_t product_col_tiles(const ProductTiles& tiles, int64_t cols, int tile_cols) {
  const int own = tiles.paired ? tile_cols / 2 : tile_cols;
  return (cols + own - 1) / own;
}

struct TilePlace {
  int64_t row0;
  int64_t row_end;
  int64_t col0;  // of the result: of each of two right factors
  int group;     // < 0: nothing to do
};

/// Blocks side by side share their columns: the tile of the weight stays in the second-level cache.
template <int TileRows, int TileCols>
__device__ __forceinline__ TilePlace place_of(const ProductTiles& p, int64_t rows, unsigned block) {
  const int64_t row_tile = block % p.row_tiles;
  const int64_t col0 = block / p.row_tiles * (p.paired ? TileCols / 2 : TileCols);
  if (!p.tiles) return {row_tile * TileRows, rows, col0, 0};
  const RowTile tile = simt::load(p.tiles + row_tile);
  return {tile.first, tile.end, col0, tile.group};
}

/// The row of the left factor that row `row` reads; -1 if there is none, whatever lies in the order.
__device__ __forceinline__ int64_t left_row_of(const ProductTiles& p, int64_t row, int64_t row_end,
                                               int64_t left_rows) {
  if (row >= row_end) return -1;
  if (p.left_order) row = simt::load(p.left_order + row) / p.share;
  return row >= 0 && row < left_rows ? row : -1;
}

/// Where row `row` of the result is written; -1 if nowhere.
__device__ __forceinline__ int64_t result_row_of(const ProductTiles& p, int64_t row, int64_t row_end) {
  if (row >= row_end) return -1;
  return p.result_order ? simt::load(p.result_order + row) : row;
}

/// Column n of a tile: of which right factor, and which of its columns from the tile's first on. Pairs take
/// turns in runs of Run columns, as a thread's accumulators do: it then holds both sums of an element.
struct TileColumn {
  int factor;
  int col;
};
template <int Run>
__device__ __forceinline__ TileColumn column_of(const ProductTiles& p, int n) {
  if (!p.paired) return {0, n};
  return {n / Run % 2, n / (2 * Run) * Run + n % Run};
}

}  // namespace quantaria::ops
