#pragma once

#include "ops/dequant_matmul/coded_value.cuh"
#include "ops/gemm/epilogue.cuh"
#include "ops/gemm/product_tiles.cuh"

/// Products with quantized weights, plain or grouped, before a loop and a decoder are chosen.
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
  static_assert(kRuns % 2 == 0);
};

/// Few rows: every warp has all of them and columns of its own, so no code is decoded twice, and long steps,
/// as such a product waits for memory. Many: each code serves 64 rows, each activation 64 columns.
using FewRowsTile = CodedTile<1, 4, 1, 2, 128, 3, 4>;
using ManyRowsTile = CodedTile<2, 2, 2, 4, 64, 3, 3>;

/// Rows of a tile for groups of so many rows.
inline int coded_tile_rows(int64_t rows) {
  return rows <= FewRowsTile::kTileRows ? FewRowsTile::kTileRows : ManyRowsTile::kTileRows;
}

/// A launch. Grouped: the weights of groups have `weight`'s shape and table, and lie at sources[e], or in
/// pairs at sources[2 e] (gate) and sources[2 e + 1] (up); null codes: this launch is not for that group.
struct CodedCall {
  simt::Stream stream;
  ConstMatrix x;
  const DeviceWeight& weight;
  float unscale;               // what its table was multiplied by, undone
  const CodedSource* sources;  // in device memory, or null for the weight's own
  ProductTiles tiles;          // of tile_rows rows
  int splits;                  // of the columns, between blocks: 1 if grouped
  float* partial;              // [splits, rows, cols]
  Epilogue epilogue;
  int tile_rows = kFmaTileRows;
};

/// Integers, bits as CodedMatrix has them, on tensor cores.
void launch_integer_product(const CodedCall& call);
/// Tables of 4 or 8 bits, rounded to x's dtype, on tensor cores.
void launch_table_product(const CodedCall& call);
/// Everything, by fused multiply-add.
void launch_coded_fma_product(const CodedCall& call);

/// float16 has its finest steps, for its range, just below 2^15: the table's largest value is brought there
/// by a power of two, which is returned inverted, so that its small ones keep their bits.
float fill_float16_range(DeviceWeight& weight);

}  // namespace quantaria::ops
