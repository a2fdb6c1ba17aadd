#pragma once

#include <algorithm>

#include "core/error.h"
#include "ops/dequant_matmul/int8_operands.cuh"
#include "ops/dequant_matmul/int8_outliers.cuh"
#include "ops/dequant_matmul/int8_results.cuh"

/// The loop of integer products on tensor cores: int8 activations times a weight's codes, int32 sums inside a
/// group, which its scales bring to float32 in the order of groups: the bits of the CPU's
/// (byte_rows.h). Where all columns are one group, the loop has nothing but the sums in it.
namespace quantaria::ops {

template <class Tile, int Bits, bool Grouped, class T>
struct Int8Shared {
  struct Results {
    WarpResults<Tile> of_warp[Tile::kThreads / 32];
    std::conditional_t<std::is_void_v<T>, NoOutliers,
                       OutlierTail<Tile, std::conditional_t<std::is_void_v<T>, float, T>>>
        tail;
  };
  /// First the steps' columns, then the results.
  union Room {
    Int8Stage<Tile, Bits, Grouped> stage[Tile::kStages];
    Results results;
  } room;
  TileFactors<Tile> factors;
  TileBias<Tile> bias;
};

template <class Tile>
using Int8Sums = int32_t[Tile::kRows][Tile::kCols][4];
template <class Tile>
using Int8Totals = float[Tile::kRows][Tile::kCols][4];

/// sum += the products of a run.
template <int Bits, class Tile, class Stage>
__device__ __forceinline__ void multiply_run(const Stage& stage, const WarpPlace<Tile>& warp, int run,
                                             int bits, Int8Sums<Tile>& sum) {
  uint32_t codes[Tile::kCols][2];
  load_codes<Tile, Bits>(stage.codes, warp, run, bits, codes);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp.row + lane % 16;
  const int piece = swapped_piece<Tile::kStep / 16>(row, run * 2 + lane / 16);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    uint32_t x[4];
    simt::ldmatrix(x, &stage.x[row + i * 16][piece * 16]);
#pragma unroll
    for (int j = 0; j < Tile::kCols; ++j) simt::mma_m16n8k32_s8(sum[i][j], x, codes[j]);
  }
}

/// What a group's sums are multiplied with, for a column.
struct RightConstant {
  float scale;
  int32_t zero;
};
/// And for a row: `sum` that of its codes, 0 where there are no zero points.
struct LeftConstant {
  float scale;
  int32_t sum;
};

/// total += a group's sums in float32. left(row), right(col): its constants, of the tile's rows and columns.
template <int Bits, class Tile, class Left, class Right>
__device__ __forceinline__ void add_group(const Int8Product& p, const WarpPlace<Tile>& warp, bool with_zeros,
                                          const Left& left, const Right& right, const Int8Sums<Tile>& sum,
                                          Int8Totals<Tile>& total) {
  const int middle = 1 << ((Bits == 0 ? p.weight.matrix.bits : Bits) - 1);
  const float x_divisor = p.rows.scale_divisor;
  const float divisor = p.weight.matrix.divisor;
  RightConstant of_col[Tile::kCols][2];
#pragma unroll
  for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      of_col[j][e] = right(warp.col + j * 8 + warp.t * 2 + e);
      if (divisor != 1) of_col[j][e].scale /= divisor;
    }
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      LeftConstant of_row = left(warp.row + i * 16 + half * 8 + warp.g);
      if (x_divisor != 1) of_row.scale /= x_divisor;
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int32_t whole = sum[i][j][half * 2 + e] >> kCodeShift<Bits>;
          float plain = static_cast<float>(whole);
          if (with_zeros)
            plain = fmaf(-static_cast<float>(of_col[j][e].zero), static_cast<float>(of_row.sum),
                         static_cast<float>(whole + middle * of_row.sum));
          float& added = total[i][j][half * 2 + e];
          added = fmaf(plain * of_row.scale, of_col[j][e].scale, added);
        }
    }
}

/// The constants of the one group, from where they are stored.
template <int Bits, class Tile>
__device__ __forceinline__ void add_whole(const Int8Product& p, const TileFactors<Tile>& factors,
                                          const WarpPlace<Tile>& warp, const Int8Sums<Tile>& sum,
                                          Int8Totals<Tile>& total) {
  const CodedMatrix& m = p.weight.matrix;
  const bool with_zeros = m.zeros != nullptr;
  const bool some = p.steps.steps > 0;  // without columns there is no group either
  const auto left = [&](int r) -> LeftConstant {
    if (!some) return {};
    const int64_t row = factors.left[r] < 0 ? 0 : factors.left[r];
    return {simt::load(p.rows.scales + row), with_zeros ? simt::load(p.rows.sums + row) : 0};
  };
  const auto right = [&](int n) -> RightConstant {
    if (!some) return {};
    const TileColumn column = column_of<Tile::kPairRun>(p.tiles, n);
    const CodedSource& source = factors.right[column.factor];
    const int64_t at = row_within(m, factors.place.col0 + column.col) * m.row_step;
    return {simt::load(source.floats + at), with_zeros ? simt::load(source.zeros + at) : 0};
  };
  add_group<Bits>(p, warp, with_zeros, left, right, sum, total);
}

/// T: the activations' type where outlier columns are multiplied apart, else void.
template <class Tile, int Bits, bool Grouped, class T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    int8_product(const __grid_constant__ Int8Product p) {
  auto& shared = simt::shared<Int8Shared<Tile, Bits, Grouped, T>>();
  auto& room = shared.room;
  const CodedMatrix& m = p.weight.matrix;
  const WarpPlace<Tile> warp;
  const TilePlace found = place_of<Tile::kTileRows, Tile::kTileCols>(p.tiles, p.epilogue.c.rows, blockIdx.x);
  if (found.group < 0) return;
  shared.factors.find(p.tiles, found, p.rows.rows, 1, p.sources, p.weight.source());
  shared.bias.find(p.epilogue, found);
  __syncthreads();  // the rows, the factors and the bias are known to all
  if (!shared.factors.right[0].there()) return;
  const TilePlace& place = shared.factors.place;
  const int bits = Bits == 0 ? m.bits : Bits;
  Int8Totals<Tile> total = {};
  Int8Sums<Tile> sum = {};  // of the group under way

  Int8Fetch<Tile, Bits, Grouped> fetch(p, room.stage, shared.factors);
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
    int group = 0;  // of this step
#pragma unroll
    for (int run = 0; run < Tile::kRuns; ++run) {
      multiply_run<Bits>(stage, warp, run, bits, sum);
      if constexpr (Grouped) {
        if (!group_ends.after(run)) continue;
        const auto& constants = stage.constants;
        const bool with_zeros = m.zeros != nullptr;
        add_group<Bits>(
            p, warp, with_zeros,
            [&](int r) -> LeftConstant {
              return {constants.x_scales[group][r], with_zeros ? constants.x_sums[group][r] : 0};
            },
            [&](int n) -> RightConstant {
              return {constants.scales[group][n], with_zeros ? constants.zeros[group][n] : 0};
            },
            sum, total);
#pragma unroll
        for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
          for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
            for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
        if (!group_ends.next()) break;
        ++group;
      }
    }
    if constexpr (Grouped) group_ends.step_done(Tile::kRuns);
  }
  if constexpr (!Grouped) add_whole<Bits>(p, shared.factors, warp, sum, total);

  __syncthreads();  // all have left the stages
  auto& results = room.results.of_warp[threadIdx.x / 32];
  put_results(warp, results, total);
  if constexpr (!std::is_void_v<T>) add_outliers(room.results.tail, p, place, warp, results);
  write_results(p.tiles, place, warp, p.epilogue, shared.bias, results);
}

template <class Tile, int Bits, bool Grouped, class T>
void launch_int8_tile(simt::Stream stream, Int8Product product) {
  const Int8Rows& x = product.rows;
  // Where runs of codes follow each other, so do columns: the padding of a short last group is left out.
  const int64_t runs = product.vectors ? (x.cols + kInt8Run - 1) / kInt8Run : x.groups * x.runs_per_group;
  product.steps = steps_of_groups<Tile>(runs, x.runs_per_group);
  const int64_t tiles =
      product.tiles.row_tiles * product_col_tiles(product.tiles, product.epilogue.c.cols, Tile::kTileCols);
  if (tiles > 0x7fffffff)
    fail(ErrorCode::unsupported, "a product of ", tiles, " tiles, at most 2^31 - 1 expected");
  simt::launch(int8_product<Tile, Bits, Grouped, T>, dim3(static_cast<unsigned>(tiles)), dim3(Tile::kThreads),
               sizeof(Int8Shared<Tile, Bits, Grouped, T>), stream, product);
}

/// Few rows: many blocks, each with little to do. Many: each code serves 64 rows, each activation 64 columns;
/// with more of them 128.
using FewInt8Rows = CodedTile<1, 4, 1, 1, 128, 3, 4>;
using ManyInt8Rows = CodedTile<2, 2, 2, 4, 128, 3, 3>;
using MostInt8Rows = CodedTile<2, 4, 4, 4, 64, 4, 2>;

template <int Bits, bool Grouped, class T>
void launch_int8(simt::Stream stream, const Int8Product& product, int tile_rows) {
  if (tile_rows == FewInt8Rows::kTileRows)
    return launch_int8_tile<FewInt8Rows, Bits, Grouped, T>(stream, product);
  if constexpr (!Grouped)
    if (tile_rows == MostInt8Rows::kTileRows)
      return launch_int8_tile<MostInt8Rows, Bits, Grouped, T>(stream, product);
  launch_int8_tile<ManyInt8Rows, Bits, Grouped, T>(stream, product);
}

/// Of eight bits and one group, with outlier columns if there are any, of activations of any type.
void launch_llm_int8(simt::Stream stream, const Int8Product& product, int tile_rows);

}  // namespace quantaria::ops
