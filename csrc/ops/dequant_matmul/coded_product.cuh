#pragma once

#include <algorithm>

#include "core/error.h"
#include "ops/dequant_matmul/coded_fragments.cuh"

/// The one loop of products with quantized weights on tensor cores, plain or grouped: y = x W^T, codes
/// brought into shared memory as they are stored and decoded on the way to the registers. Inside a group,
/// tensor cores sum x times the decoded codes; its scale is applied to that sum in float32, so no scaled
/// weight is ever rounded to 16 bits.
namespace quantaria::ops {

template <class T, class Tile, class Decoder>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    coded_product(const __grid_constant__ CodedProduct p) {
  auto& shared = simt::shared<CodedShared<Tile, Decoder>>();
  const CodedMatrix& m = p.weight.matrix;
  const WarpPlace<Tile> warp;
  const TilePlace place = place_of<Tile::kTileRows, Tile::kTileCols>(p.tiles, p.epilogue.c.rows, blockIdx.x);
  if (place.group < 0) return;
  const int begin = static_cast<int>(int64_t{p.steps.steps} * blockIdx.y / gridDim.y);
  const int end = static_cast<int>(int64_t{p.steps.steps} * (blockIdx.y + 1) / gridDim.y);

  shared.factors.find(p.tiles, place, p.x_rows, p.x_stride, p.sources, p.weight.source());
  if constexpr (Decoder::kTable) Decoder::prepare(shared.decoder, p.weight.table);
  if (m.form == ScaleForm::nested) p.weight.prepare_nested(shared.table);
  __syncthreads();  // the rows, the factors and what decodes scales are known to all
  if (!shared.factors.right[0].there()) return;
  const bool with_zeros = shared.factors.right[0].zeros != nullptr;

  float total[Tile::kRows][Tile::kCols][4] = {};
  float sum[Tile::kRows][Tile::kCols][4] = {};  // of the group under way
  typename Decoder::Zero zero[Tile::kCols][2];
#pragma unroll
  for (auto& of_fragment : zero)
#pragma unroll
    for (auto& of_row : of_fragment) of_row = Decoder::zero(static_cast<float>(-m.first));

  const LanePlaces<Tile, Decoder::kBits> lane(shared.stage[0], warp);
  CodedFetch<Tile, Decoder> fetch(p, shared, begin, end);
  GroupEnds group_ends(p.steps, begin * Tile::kRuns, end * Tile::kRuns);
  for (int step = begin - (Tile::kStages - 1); step < end; ++step) {
    simt::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this step's stage is there for all, and all have left that of the last step
    fetch.begin_step(step + Tile::kStages - 1);
    if (step < begin) continue;  // nothing has been waited for yet
    const int stage = fetch.oldest();
    int constants = stage;  // where the group's are
    const auto begin_group = [&] {
      if (!with_zeros) return;
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
        for (int half = 0; half < 2; ++half)
          zero[j][half] =
              Decoder::zero(static_cast<float>(*in_stage(lane.zeros + j * 16 + half * 8, constants)));
    };
    begin_group();
#pragma unroll
    for (int run = 0; run < Tile::kRuns; ++run) {
      uint4 x[Tile::kRows];
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i) x[i] = load_x(lane, stage, i, run);
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j) {
        uint32_t weight[2][4];
        load_weight<Decoder>(lane, stage, j, run, warp.t, zero[j], shared.decoder, weight);
#pragma unroll
        for (int i = 0; i < Tile::kRows; ++i) multiply_run<T>(sum[i][j], weight, x[i]);
      }
      if (!group_ends.after(run)) continue;
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float scale = *in_stage(lane.scales + j * 16 + c * 8, constants);
#pragma unroll
          for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
            for (int r = 0; r < 2; ++r) {
              float& of_group = sum[i][j][warp.sum_of(r, c)];
              float& added = total[i][j][warp.sum_of(r, c)];
              added = fmaf(of_group, scale, added);
              of_group = 0;
            }
        }
      if (!group_ends.next()) break;
      constants += Tile::kTileCols * 4;
      if (run + 1 < Tile::kRuns) begin_group();
    }
    group_ends.step_done(Tile::kRuns);
  }

  if (p.splits.sums && !add_splits(p.splits, shared.unfinished, total)) return;
  write_totals(p.tiles, shared.factors.place, warp, total,
               [&](int64_t row, int64_t col, float value) { p.epilogue.write(row, col, value); });
}

template <class Tile, int Bits>
CodedSteps coded_steps(const CodedMatrix& m) {
  CodedSteps s = steps_of_groups<Tile>((m.in + 31) / 32, (std::min(m.group, m.in) + 31) / 32);
  const int64_t before = std::max<int64_t>(0, int64_t{s.steps} - 1);
  s.last_columns = static_cast<int>(m.in - before * Tile::kStep);
  s.last_words = static_cast<int>(m.row_bits / 32 - before * Tile::kRuns * Bits);
  s.whole = static_cast<int>(s.last_columns == Tile::kStep ? s.steps : before);
  return s;
}

template <class T, class Tile, class Decoder>
void launch_coded(const CodedCall& call) {
  const int64_t tiles =
      call.tiles.row_tiles * product_col_tiles(call.tiles, call.epilogue.c.cols, Tile::kTileCols);
  if (tiles > 0x7fffffff)
    fail(ErrorCode::unsupported, "a product of ", tiles, " tiles, at most 2^31 - 1 expected");
  const CodedMatrix& m = call.weight.matrix;
  constexpr int kPieceWords = CodePieces<Tile, Decoder::kBits>::kWords;
  CodedProduct product{};
  product.x = reinterpret_cast<const uint16_t*>(call.x.data);
  product.x_rows = call.x.rows;
  product.x_stride = call.x.row_stride;
  product.weight = {m, call.weight.table};
  product.sources = call.sources;
  product.tiles = call.tiles;
  product.unscale = call.unscale;
  product.x_vectors =
      reinterpret_cast<uintptr_t>(call.x.data) % 16 == 0 && call.x.row_stride % 8 == 0 && m.in % 8 == 0;
  product.code_pieces = m.row_bits / 32 % kPieceWords == 0;
  product.scales_copied = m.form == ScaleForm::plain && m.divisor == 1 && call.unscale == 1;
  product.copied = product.x_vectors && product.code_pieces && product.scales_copied;
  product.steps = coded_steps<Tile, Decoder::kBits>(m);
  if (call.splits > 1) product.splits = call.sums;
  product.epilogue = call.epilogue;
  simt::launch(coded_product<T, Tile, Decoder>,
               dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(call.splits)), dim3(Tile::kThreads),
               sizeof(CodedShared<Tile, Decoder>), call.stream, product);
}

template <class T, class Decoder>
void launch_coded_tile(const CodedCall& call) {
  with_coded_tile(call.tile_rows, [&](auto tile) { launch_coded<T, decltype(tile), Decoder>(call); });
}

}  // namespace quantaria::ops
