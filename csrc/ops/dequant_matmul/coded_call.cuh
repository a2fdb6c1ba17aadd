#pragma once

#include "ops/dequant_matmul/coded_tile.cuh"
#include "ops/gemm/column_splits.cuh"
#include "ops/gemm/epilogue.cuh"

/// Products with quantized weights, plain or grouped, before a loop and a decoder are chosen.
namespace quantaria::ops {

/// Steps are long, as much is worked out once a step. Up to 32 rows every warp has all of them and columns of
/// its own, so no code is decoded twice. Up to 16 a product waits for memory: small blocks in three stages,
/// and as many of them as find room. Up to 32 tiles are twice as wide, as warps would otherwise read
/// activations from shared memory for longer than they multiply them. Many: each code serves 64 rows, each
/// activation 64 columns. Where tensor cores have enough to do, two stages hide what the third block waits
/// for.
using EightRowsTile = TurnedTile<1, 4, 1, 1, 128, 3, 5>;
using SixteenRowsTile = TurnedTile<1, 4, 2, 1, 128, 3, 4>;
using ThirtyTwoRowsTile = TurnedTile<1, 4, 4, 2, 128, 2, 3>;
using ManyRowsTile = TurnedTile<2, 2, 4, 2, 128, 2, 3>;

/// Rows of a tile for groups of so many rows.
inline int coded_tile_rows(int64_t rows) {
  for (const int tile_rows :
       {EightRowsTile::kTileRows, SixteenRowsTile::kTileRows, ThirtyTwoRowsTile::kTileRows})
    if (rows <= tile_rows) return tile_rows;
  return ManyRowsTile::kTileRows;
}

/// call(Tile{}) for the tile of so many rows.
template <class Call>
auto with_coded_tile(int tile_rows, const Call& call) {
  switch (tile_rows) {
    case EightRowsTile::kTileRows:
      return call(EightRowsTile{});
    case SixteenRowsTile::kTileRows:
      return call(SixteenRowsTile{});
    case ThirtyTwoRowsTile::kTileRows:
      return call(ThirtyTwoRowsTile{});
    default:
      return call(ManyRowsTile{});
  }
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
  ColumnSplits sums;           // if there are several
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
