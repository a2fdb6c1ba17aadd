#pragma once

#include "core/error.h"
#include "ops/dequant_matmul/coded_call.cuh"
#include "ops/dequant_matmul/decoders.cuh"

/// The one loop of products with quantized weights on tensor cores, plain or grouped: y = x W^T, codes
/// brought into shared memory as they are stored and decoded on the way to the registers. Inside a group,
/// tensor cores sum x times the decoded codes; its scale is applied to that sum in float32, so no scaled
/// weight is ever rounded to 16 bits.
namespace quantaria::ops {

/// Words from one row of codes to the next one: an odd number of 16-byte pieces, so that the eight rows that
/// a warp reads at once begin in different banks.
constexpr int code_pitch(int words) {
  const int pieces = (words + 3) / 4;
  return (pieces + (pieces % 2 == 0 ? 1 : 0)) * 4;
}

/// One stage. Runs of 32 activations are 64 bytes; those of odd rows change places in pairs, so that the
/// eight lanes that read 16 bytes at once, of two neighbouring rows, meet all banks.
template <class Tile, int Bits>
struct CodedStage {
  alignas(16) uint16_t x[Tile::kTileRows][Tile::kStep];
  alignas(16) uint32_t codes[Tile::kTileCols][code_pitch(Tile::kRuns * Bits)];
  float scales[Tile::kRuns][Tile::kTileCols];
  int32_t zeros[Tile::kRuns][Tile::kTileCols];
};

template <class Tile, class Decoder>
struct CodedShared {
  CodedStage<Tile, Decoder::kBits> stage[Tile::kStages];
  typename Decoder::Shared decoder;
  CodeTable table;  // its map of nested scales
  TileFactors<Tile> factors;
};

struct CodedProduct {
  const uint16_t* x;  // [x_rows, in], unit stride along columns
  int64_t x_rows;
  int64_t x_stride;
  CodedRows weight;
  const CodedSource* sources;
  ProductTiles tiles;
  float unscale;   // what the table was multiplied by, undone
  int steps;       // of all columns
  float* partial;  // [splits, rows, cols] if the columns are split between blocks, else null
  Epilogue epilogue;
};

template <class Tile, class Decoder>
struct CodedLoop {
  using Shared = CodedShared<Tile, Decoder>;
  static constexpr int kBits = Decoder::kBits;

  const CodedProduct& p;
  Shared& shared;
  int64_t col0;

  /// 16 bytes at a time where rows begin at multiples of 16 and hold whole vectors.
  __device__ __forceinline__ void fetch_x(int step) const {
    auto& stage = shared.stage[step % Tile::kStages];
    constexpr int kVectors = Tile::kStep / 8;
    const int64_t in = p.weight.matrix.in;
    const bool vectors = reinterpret_cast<uintptr_t>(p.x) % 16 == 0 && p.x_stride % 8 == 0 && in % 8 == 0;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTileRows * kVectors; i += Tile::kThreads) {
      const int r = i / kVectors;
      const int v = i % kVectors;
      const int64_t k = int64_t{step} * Tile::kStep + v * 8;
      const int64_t start = shared.factors.left[r];
      const bool row_there = start >= 0;
      const uint16_t* const from = p.x + (row_there ? start : 0);
      uint16_t* const to = &stage.x[r][(v ^ (r & 1) << 2) * 8];
      if (vectors) {
        const bool there = row_there && k < in;
        simt::cp_async<16>(to, there ? from + k : p.x, there);
      } else {
#pragma unroll 1  // the eight addresses would not fit into registers
        for (int e = 0; e < 8; ++e) to[e] = row_there && k + e < in ? simt::load(from + k + e) : uint16_t{0};
      }
    }
  }

  template <int Words>
  __device__ __forceinline__ void fetch_codes(int step) const {
    auto& stage = shared.stage[step % Tile::kStages];
    const CodedMatrix& m = p.weight.matrix;
    constexpr int kPieces = Tile::kRuns * kBits / Words;
    const int64_t row_words = m.row_bits / 32;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTileCols * kPieces; i += Tile::kThreads) {
      const int n = i / kPieces;
      const int w = i % kPieces * Words;
      const int64_t word = int64_t{step} * Tile::kRuns * kBits + w;
      const TileColumn column = column_of<Tile::kPairRun>(p.tiles, n);
      const bool there = col0 + column.col < m.out && word < row_words;
      const uint32_t* const words = shared.factors.right[column.factor].words;
      simt::cp_async<Words * 4>(&stage.codes[n][w],
                                there ? words + (col0 + column.col) * row_words + word : words, there);
    }
  }

  /// Of the groups that this step's columns are in.
  __device__ __forceinline__ void fetch_constants(int step) const {
    auto& stage = shared.stage[step % Tile::kStages];
    const CodedMatrix& m = p.weight.matrix;
    const int64_t first = int64_t{step} * Tile::kStep;
    const int64_t last = (first + Tile::kStep < m.in ? first + Tile::kStep : m.in) - 1;
    const int groups = static_cast<int>(last / m.group - first / m.group) + 1;
    const bool copied = m.form == ScaleForm::plain && m.divisor == 1 && p.unscale == 1;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTileCols * groups; i += Tile::kThreads) {
      const int n = i % Tile::kTileCols;
      const int g = i / Tile::kTileCols;
      const TileColumn column = column_of<Tile::kPairRun>(p.tiles, n);
      const CodedSource& source = shared.factors.right[column.factor];
      const int64_t row = col0 + column.col;
      const bool there = row < m.out;
      const int64_t constant = there ? row * m.row_step + first / m.group + g : 0;
      if (copied)
        simt::cp_async<4>(&stage.scales[g][n], source.floats + constant, there);
      else
        stage.scales[g][n] = there ? p.weight.scale(shared.table, source, row, constant) * p.unscale : 0.0f;
      if (source.zeros) simt::cp_async<4>(&stage.zeros[g][n], source.zeros + constant, there);
    }
  }

  __device__ __forceinline__ void begin_step(int step, int end) const {
    if (step < end) {
      const int64_t row_words = p.weight.matrix.row_bits / 32;
      fetch_x(step);
      if (Tile::kRuns * kBits % 4 == 0 && row_words % 4 == 0)
        fetch_codes<Tile::kRuns * kBits % 4 == 0 ? 4 : 1>(step);
      else
        fetch_codes<1>(step);
      fetch_constants(step);
    }
    simt::cp_async_commit();  // an empty group too: waits count them
  }

  /// Both k16 operands of a run of 32 columns: registers as decoders pair them.
  __device__ __forceinline__ void load_x(const CodedStage<Tile, kBits>& stage, int row, int run, int t,
                                         uint32_t (&operand)[2][4]) const {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int r = row + half * 8;
      const auto v = simt::load_shared<uint4>(&stage.x[r][((run ^ (r & 1)) * 4 + t) * 8]);
      if constexpr (Decoder::kFarPairs) {
        operand[0][half] = simt::prmt(v.x, v.z, 0x5410);
        operand[0][half + 2] = simt::prmt(v.x, v.z, 0x7632);
        operand[1][half] = simt::prmt(v.y, v.w, 0x5410);
        operand[1][half + 2] = simt::prmt(v.y, v.w, 0x7632);
      } else {
        operand[0][half] = v.x;
        operand[0][half + 2] = v.y;
        operand[1][half] = v.z;
        operand[1][half + 2] = v.w;
      }
    }
  }
};

template <class T, class Tile, class Decoder>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    coded_product(const __grid_constant__ CodedProduct p) {
  auto& shared = simt::shared<CodedShared<Tile, Decoder>>();
  const CodedMatrix& m = p.weight.matrix;
  const WarpPlace<Tile> warp;
  const TilePlace place = place_of<Tile::kTileRows, Tile::kTileCols>(p.tiles, p.epilogue.c.rows, blockIdx.x);
  if (place.group < 0) return;
  const CodedLoop<Tile, Decoder> loop{p, shared, place.col0};
  const int begin = static_cast<int>(int64_t{p.steps} * blockIdx.y / gridDim.y);
  const int end = static_cast<int>(int64_t{p.steps} * (blockIdx.y + 1) / gridDim.y);

  shared.factors.find(p.tiles, place, p.x_rows, p.x_stride, p.sources, p.weight.source());
  if constexpr (Decoder::kTable) Decoder::prepare(shared.decoder, p.weight.table);
  if (m.form == ScaleForm::nested) p.weight.prepare_nested(shared.table);
  __syncthreads();  // the rows, the factors and what decodes scales are known to all
  if (!shared.factors.right[0].there()) return;
  const bool with_zeros = shared.factors.right[0].zeros != nullptr;

  float total[Tile::kRows][Tile::kCols][4] = {};
  float sum[Tile::kRows][Tile::kCols][4] = {};  // of the group under way
  typename Decoder::Zero zero[Tile::kCols];
#pragma unroll
  for (int j = 0; j < Tile::kCols; ++j) zero[j] = Decoder::zero(static_cast<float>(-m.first));

  for (int step = 0; step < Tile::kStages - 1; ++step) loop.begin_step(begin + step, end);
  int64_t left = m.group - int64_t{begin} * Tile::kStep % m.group;  // columns of the group under way
  for (int step = begin; step < end; ++step) {
    simt::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this step's stage is there for all, and all have left that of the last step
    loop.begin_step(step + Tile::kStages - 1, end);
    const auto& stage = shared.stage[step % Tile::kStages];
    int group = 0;  // of this step
#pragma unroll
    for (int run = 0; run < Tile::kRuns; ++run) {
      if (int64_t{step} * Tile::kStep + run * 32 >= m.in) break;
      if (with_zeros) {
#pragma unroll
        for (int j = 0; j < Tile::kCols; ++j)
          zero[j] = Decoder::zero(static_cast<float>(stage.zeros[group][warp.col + j * 8 + warp.g]));
      }
      uint32_t x[Tile::kRows][2][4];
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i) loop.load_x(stage, warp.row + i * 16 + warp.g, run, warp.t, x[i]);
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j) {
        uint32_t pair[4];
        const uint32_t* const codes = &stage.codes[warp.col + j * 8 + warp.g][run * Decoder::kBits];
        Decoder::decode(raw_codes<Decoder::kBits>(codes, warp.t), zero[j], shared.decoder, pair);
        const uint32_t first[2] = {pair[0], pair[1]};
        const uint32_t second[2] = {pair[2], pair[3]};
#pragma unroll
        for (int i = 0; i < Tile::kRows; ++i) {
          simt::mma_m16n8k16<T>(sum[i][j], x[i][0], first);
          simt::mma_m16n8k16<T>(sum[i][j], x[i][1], second);
        }
      }
      left -= 32;
      const bool last =
          step + 1 == end && (run + 1 == Tile::kRuns || int64_t{step} * Tile::kStep + run * 32 + 32 >= m.in);
      if (left > 0 && !last) continue;
      left = m.group;
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const float scale = stage.scales[group][warp.col + j * 8 + warp.t * 2 + e % 2];
#pragma unroll
          for (int i = 0; i < Tile::kRows; ++i) {
            total[i][j][e] = fmaf(sum[i][j][e], scale, total[i][j][e]);
            sum[i][j][e] = 0;
          }
        }
      ++group;
    }
  }

  const Matrix& c = p.epilogue.c;
  write_totals(p.tiles, place, warp, total, [&](int64_t row, int64_t col, float value) {
    if (!p.partial)
      p.epilogue.write(row, col, value);
    else if (row >= 0 && row < c.rows && col < c.cols)
      simt::store(p.partial + (blockIdx.y * c.rows + row) * c.cols + col, value);
  });
}

template <class T, class Tile, class Decoder>
void launch_coded(const CodedCall& call) {
  const int64_t tiles =
      call.tiles.row_tiles * product_col_tiles(call.tiles, call.epilogue.c.cols, Tile::kTileCols);
  if (tiles > 0x7fffffff)
    fail(ErrorCode::unsupported, "a product of ", tiles, " tiles, at most 2^31 - 1 expected");
  const CodedMatrix& m = call.weight.matrix;
  const CodedProduct product{reinterpret_cast<const uint16_t*>(call.x.data),
                             call.x.rows,
                             call.x.row_stride,
                             {m, call.weight.table},
                             call.sources,
                             call.tiles,
                             call.unscale,
                             static_cast<int>((m.in + Tile::kStep - 1) / Tile::kStep),
                             call.splits > 1 ? call.partial : nullptr,
                             call.epilogue};
  simt::launch(coded_product<T, Tile, Decoder>,
               dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(call.splits)), dim3(Tile::kThreads),
               sizeof(CodedShared<Tile, Decoder>), call.stream, product);
}

template <class T, class Decoder>
void launch_coded_tile(const CodedCall& call) {
  call.tile_rows == FewRowsTile::kTileRows ? launch_coded<T, FewRowsTile, Decoder>(call)
                                           : launch_coded<T, ManyRowsTile, Decoder>(call);
}

}  // namespace quantaria::ops
