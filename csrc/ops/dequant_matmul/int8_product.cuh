#pragma once

#include <algorithm>

#include "core/error.h"
#include "cuda/grid.h"
#include "ops/dequant_matmul/int8_group.cuh"
#include "ops/dequant_matmul/int8_outliers.cuh"
#include "ops/dequant_matmul/int8_results.cuh"

/// The loop of integer products on tensor cores: int8 activations times a weight's codes, int32 sums inside a
/// group, which its scales bring to float32 in the order of groups: the bits of the CPU's
/// (byte_rows.h). Where all columns are one group, the loop has nothing but the sums in it.
namespace quantaria::ops {

template <class Tile, int Bits, class Groups, class T>
struct Int8Shared {
  struct Results {
    WarpResults<Tile> of_warp[Tile::kThreads / 32];
    std::conditional_t<std::is_void_v<T>, NoOutliers,
                       OutlierTail<Tile, std::conditional_t<std::is_void_v<T>, float, T>>>
        tail;
  };
  /// First the steps' columns, then the results.
  union Room {
    Int8Stage<Tile, Bits, Groups> stage[Tile::kStages];
    Results results;
  } room;
  TileFactors<Tile> factors;
  TileBias<Tile> bias;
  Int8Constants<Tile, std::conditional_t<std::is_same_v<Groups, OneGroup>, StepGroups, OneGroup>> constants;
};

/// T: the activations' type where outlier columns are multiplied apart, else void.
template <class Tile, int Bits, class Groups, class T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    int8_product(const __grid_constant__ Int8Product p) {
  auto& shared = simt::shared<Int8Shared<Tile, Bits, Groups, T>>();
  auto& room = shared.room;
  const CodedMatrix& m = p.weight.matrix;
  const WarpPlace<Tile> warp;
  const TilePlace found = place_of<Tile::kTileRows, Tile::kTileCols>(p.tiles, p.epilogue.c.rows, blockIdx.x);
  if (found.group < 0) return;
  shared.factors.find(p.tiles, found, p.rows.rows, 1, p.sources, p.weight.source());
  shared.bias.find(p.epilogue, found);
  __syncthreads();  // the rows, the factors and the bias are known to all
  if (!shared.factors.right[0].there()) return;
  if constexpr (std::is_same_v<Groups, OneGroup>) find_constants(p, shared.factors, shared.constants);
  const TilePlace& place = shared.factors.place;
  const int bits = Bits == 0 ? m.bits : Bits;
  const bool with_zeros = m.zeros != nullptr;
  const int middle = 1 << (bits - 1);
  float total[Tile::kRows][Tile::kCols][4] = {};
  int32_t sum[Tile::kRows][Tile::kCols][4] = {};  // of the group under way

  Int8Fetch<Tile, Bits, Groups> fetch(p, room.stage, shared.factors);
#pragma unroll 1
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) fetch.begin_step();
  GroupEnds group_ends(p.steps, 0, p.steps.runs);
  int at = 0;  // this step's stage
  for (int step = 0; step < p.steps.steps; ++step) {
    simt::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this step's stage is there for all, and all have left that of the last step
    fetch.begin_step();
    const auto& stage = room.stage[at];
    at = at + 1 == Tile::kStages ? 0 : at + 1;
    if constexpr (std::is_same_v<Groups, RunGroups>) {
      int group = 0;  // of this step
#pragma unroll 1
      for (int run = 0; run < Tile::kRuns; ++run) {
        multiply_run<Bits>(stage, warp, run, bits, nullptr, sum);
        if (!group_ends.after(run)) continue;
        if (with_zeros)
          add_group_of_step(stage.constants, group, warp, PlainSum<Bits, true>{middle}, sum, total);
        else
          add_group_of_step(stage.constants, group, warp, PlainSum<Bits, false>{middle}, sum, total);
#pragma unroll
        for (auto& row : sum)
#pragma unroll
          for (auto& col : row)
#pragma unroll
            for (int32_t& one : col) one = 0;
        if (!group_ends.next()) break;
        ++group;
      }
      group_ends.step_done(Tile::kRuns);
    } else {
      constexpr int32_t kStart[4] = {kSumStart, kSumStart, kSumStart, kSumStart};
      constexpr bool kByStep = std::is_same_v<Groups, StepGroups>;
#pragma unroll
      for (int run = 0; run < Tile::kRuns; ++run)
        multiply_run<Bits>(stage, warp, run, bits, kByStep && run == 0 ? &kStart : nullptr, sum);
      if constexpr (kByStep) {
        if (with_zeros)
          add_group_of_step(stage.constants, 0, warp, ShortSum<Bits, true>{}, sum, total);
        else
          add_group_of_step(stage.constants, 0, warp, ShortSum<Bits, false>{}, sum, total);
      }
    }
  }

  __syncthreads();  // all have left the stages, and the constants of the one group are there
  if constexpr (std::is_same_v<Groups, OneGroup>) {
    if (with_zeros)
      add_group_of_step(shared.constants, 0, warp, PlainSum<Bits, true>{middle}, sum, total);
    else
      add_group_of_step(shared.constants, 0, warp, PlainSum<Bits, false>{middle}, sum, total);
  }
  auto& results = room.results.of_warp[threadIdx.x / 32];
  put_results(warp, results, total);
  if constexpr (!std::is_void_v<T>) add_outliers(room.results.tail, p, place, warp, results);
  write_results(p.tiles, place, warp, p.epilogue, shared.bias, results);
}

template <class Tile, int Bits, class Groups, class T>
void launch_int8_tile(simt::Stream stream, Int8Product product) {
  const Int8Rows& x = product.rows;
  // Where runs of codes follow each other, so do columns: the padding of a short last group is left out.
  const int64_t runs = product.vectors ? (x.cols + kInt8Run - 1) / kInt8Run : x.groups * x.runs_per_group;
  product.steps = steps_of_groups<Tile>(runs, x.runs_per_group);
  const int64_t tiles =
      product.tiles.row_tiles * product_col_tiles(product.tiles, product.epilogue.c.cols, Tile::kTileCols);
  if (tiles > 0x7fffffff)
    fail(ErrorCode::unsupported, "a product of ", tiles, " tiles, at most 2^31 - 1 expected");
  simt::launch(int8_product<Tile, Bits, Groups, T>, dim3(static_cast<unsigned>(tiles)), dim3(Tile::kThreads),
               sizeof(Int8Shared<Tile, Bits, Groups, T>), stream, product);
}

/// Few rows: many blocks, each with little to do. Many: each code serves 64 rows, each activation 64 columns;
/// with more of them 128; but half as many columns where blocks are fewer than multiprocessors.
using FewInt8Rows = CodedTile<1, 4, 1, 1, 128, 3, 4>;
using NarrowInt8Rows = CodedTile<2, 2, 2, 2, 128, 4, 3>;
using ManyInt8Rows = CodedTile<2, 2, 2, 4, 128, 3, 3>;
using MostInt8Rows = CodedTile<2, 4, 4, 4, 64, 4, 2>;
using MostInt8RowsOfGroups = CodedTile<2, 4, 4, 4, 128, 3, 1>;

/// Whether tiles of 64 columns leave some multiprocessors without a block.
inline bool is_narrow(const Int8Product& product) {
  static_assert(NarrowInt8Rows::kTileRows == ManyInt8Rows::kTileRows);
  const int64_t col_tiles =
      product_col_tiles(product.tiles, product.epilogue.c.cols, ManyInt8Rows::kTileCols);
  return product.tiles.row_tiles * col_tiles < cuda::kMultiprocessors;
}

template <int Bits, class Groups, class T>
void launch_int8(simt::Stream stream, const Int8Product& product, int tile_rows) {
  constexpr bool kOneGroup = std::is_same_v<Groups, OneGroup>;
  if (tile_rows == FewInt8Rows::kTileRows)
    return launch_int8_tile<FewInt8Rows, Bits, Groups, T>(stream, product);
  if constexpr (kOneGroup || std::is_same_v<Groups, StepGroups>) {
    using Most = std::conditional_t<kOneGroup, MostInt8Rows, MostInt8RowsOfGroups>;
    if (tile_rows == Most::kTileRows) return launch_int8_tile<Most, Bits, Groups, T>(stream, product);
    if (is_narrow(product)) return launch_int8_tile<NarrowInt8Rows, Bits, Groups, T>(stream, product);
  }
  if (tile_rows != ManyInt8Rows::kTileRows)
    fail(ErrorCode::unsupported, "tiles of ", tile_rows, " rows for an int8 product with such groups");
  launch_int8_tile<ManyInt8Rows, Bits, Groups, T>(stream, product);
}

/// Of eight bits and one group, with outlier columns if there are any, of activations of any type.
void launch_llm_int8(simt::Stream stream, const Int8Product& product, int tile_rows);

}  // namespace quantaria::ops
