#pragma once

#include <type_traits>

#include "core/error.h"
#include "ops/dequant_matmul/coded_product.cuh"
#include "ops/dequant_matmul/int8_rows.cuh"

/// The loop of integer products on tensor cores: int8 activations times a weight's codes, int32 sums inside a
/// group, which its scales bring to float32 in the order of groups: the bits of the CPU's
/// (byte_rows.h). Lane t of a quad takes columns 8 t .. 8 t + 7 of a run of 32, as in decoders.cuh.
namespace quantaria::ops {

/// Bytes from one row of activations to the next one: 32 beyond whole banks, so that the four rows that a
/// half warp reads at once, 32 bytes each, meet all of them.
constexpr int int8_pitch(int step) { return step + 32; }

/// Words from one row of codes to the next one, for the same reason; Bits 0 leaves room for any width.
constexpr int int8_code_pitch(int runs, int bits) { return bits == 4 ? code_pitch(runs * 4) : runs * 8 + 8; }

template <class Tile, int Bits>
struct Int8Stage {
  alignas(16) int8_t x[Tile::kTileRows][int8_pitch(Tile::kStep)];
  alignas(16) uint32_t codes[Tile::kTileCols][int8_code_pitch(Tile::kRuns, Bits)];
  float x_scales[Tile::kRuns][Tile::kTileRows];
  int32_t x_sums[Tile::kRuns][Tile::kTileRows];
  float scales[Tile::kRuns][Tile::kTileCols];
  int32_t zeros[Tile::kRuns][Tile::kTileCols];
};

/// Sixteen outlier columns: activations, and codes as values of their type; for float32 the weights
/// themselves, so that no sum is larger than the CPU's.
template <class Tile, class T>
struct OutlierTail {
  static constexpr int kColumns = 16;
  static constexpr int kPitch = kColumns + 16 / sizeof(T);  // rows of a fragment begin in different banks
  alignas(16) T x[Tile::kTileRows][kPitch];
  alignas(16) T codes[Tile::kTileCols][kPitch];
};
struct NoOutliers {};

template <class Tile, int Bits, class T>
struct Int8Shared {
  Int8Stage<Tile, Bits> stage[Tile::kStages];
  TileFactors<Tile> factors;
  std::conditional_t<std::is_void_v<T>, NoOutliers,
                     OutlierTail<Tile, std::conditional_t<std::is_void_v<T>, float, T>>>
      tail;
};

struct Int8Product {
  Int8Rows rows;
  CodedRows weight;
  const CodedSource* sources;
  ProductTiles tiles;
  OutlierColumns outliers;
  bool vectors;  // whether runs of codes are copied 16 bytes at a time
  int runs;      // of all columns
  Epilogue epilogue;
};

/// Eight codes less 2^(bits - 1), as bytes.
template <int Bits>
__device__ __forceinline__ void signed_bytes(const uint32_t* run, int t, int bits, uint32_t (&word)[2]) {
  if constexpr (Bits == 8) {
    word[0] = run[2 * t];
    word[1] = run[2 * t + 1];
  } else if constexpr (Bits == 4) {
    constexpr uint32_t kLow = 0x0f0f0f0fu;
    const uint32_t even = run[t] & kLow;
    const uint32_t odd = run[t] >> 4 & kLow;
    word[0] = simt::prmt(even, odd, 0x5140);
    word[1] = simt::prmt(even, odd, 0x7362);
  } else {
    const int first = bits * t / 4;  // eight codes are `bits` bytes, in three words at most
    const int shift = bits * t % 4 * 8;
    const int last = bits - 1;
    const uint64_t low = run[first];
    const uint64_t middle = run[first < last ? first + 1 : last];
    const uint64_t high = run[first + 1 < last ? first + 2 : last];
    uint64_t codes = (low | middle << 32) >> shift;
    if (shift > 0) codes |= high << (64 - shift);
    const auto mask = (uint64_t{1} << bits) - 1;
    word[0] = 0;
    word[1] = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) word[i / 4] |= static_cast<uint32_t>(codes >> i * bits & mask) << i % 4 * 8;
  }
  const int width = Bits == 0 ? bits : Bits;
  const uint32_t lift = (0x80u - (1u << (width - 1))) * 0x01010101u;  // no byte overflows
  word[0] = (word[0] + lift) ^ 0x80808080u;
  word[1] = (word[1] + lift) ^ 0x80808080u;
}

template <class Tile, int Bits, class T>
struct Int8Loop {
  const Int8Product& p;
  Int8Shared<Tile, Bits, T>& shared;
  int64_t row0;  // of the result, as col0
  int64_t col0;

  __device__ __forceinline__ int bits() const { return Bits == 0 ? p.weight.matrix.bits : Bits; }
  __device__ __forceinline__ bool with_zeros() const { return p.weight.matrix.zeros != nullptr; }

  __device__ __forceinline__ void fetch_x(Int8Stage<Tile, Bits>& stage, int64_t byte) const {
    constexpr int kPieces = Tile::kStep / 16;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTileRows * kPieces; i += Tile::kThreads) {
      const int row = i / kPieces;
      const int64_t at = byte + i % kPieces * 16;
      const int64_t left = shared.factors.left[row];
      const bool there = left >= 0 && at < p.rows.row_bytes;
      simt::cp_async<16>(&stage.x[row][i % kPieces * 16],
                         p.rows.codes + (there ? left * p.rows.row_bytes + at : 0), there);
    }
  }

  /// Words (1 or 4) at a time.
  template <int Words>
  __device__ __forceinline__ void fetch_codes(Int8Stage<Tile, Bits>& stage, int first_run) const {
    const CodedMatrix& m = p.weight.matrix;
    const int pieces = bits() / Words;  // of a run
    const int64_t row_words = m.row_bits / 32;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTileCols * Tile::kRuns * pieces;
         i += Tile::kThreads) {
      const int word = i % pieces * Words;
      const int run = i / pieces % Tile::kRuns;
      const int n = i / pieces / Tile::kRuns;
      const int q = first_run + run;
      const int64_t col = q / p.rows.runs_per_group * p.rows.group + q % p.rows.runs_per_group * kInt8Run;
      const int64_t at = col * bits() / 32 + word;
      const TileColumn column = column_of<Tile::kPairRun>(p.tiles, n);
      const bool there = q < p.runs && col0 + column.col < m.out && at < row_words;
      simt::cp_async<Words * 4>(
          &stage.codes[n][run * bits() + word],
          shared.factors.right[column.factor].words + (there ? (col0 + column.col) * row_words + at : 0),
          there);
    }
  }

  __device__ __forceinline__ void fetch_constants(Int8Stage<Tile, Bits>& stage, int first_run) const {
    const CodedMatrix& m = p.weight.matrix;
    const int first = static_cast<int>(first_run / p.rows.runs_per_group);
    const int last_run = first_run + Tile::kRuns < p.runs ? first_run + Tile::kRuns - 1 : p.runs - 1;
    const int groups = static_cast<int>(last_run / p.rows.runs_per_group) - first + 1;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTileRows * groups; i += Tile::kThreads) {
      const int r = i % Tile::kTileRows;
      const int g = i / Tile::kTileRows;
      const int64_t left = shared.factors.left[r];
      const bool there = left >= 0;
      const int64_t at = there ? (first + g) * p.rows.rows + left : 0;
      simt::cp_async<4>(&stage.x_scales[g][r], p.rows.scales + at, there);
      if (with_zeros()) simt::cp_async<4>(&stage.x_sums[g][r], p.rows.sums + at, there);
    }
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kTileCols * groups; i += Tile::kThreads) {
      const int n = i % Tile::kTileCols;
      const int g = i / Tile::kTileCols;
      const TileColumn column = column_of<Tile::kPairRun>(p.tiles, n);
      const CodedSource& source = shared.factors.right[column.factor];
      const int64_t row = col0 + column.col;
      const bool there = row < m.out;
      const int64_t at = there ? row * m.row_step + (m.row_step == 0 ? 0 : first + g) : 0;
      simt::cp_async<4>(&stage.scales[g][n], source.floats + at, there);
      if (source.zeros) simt::cp_async<4>(&stage.zeros[g][n], source.zeros + at, there);
    }
  }

  __device__ __forceinline__ void begin_step(int step, int steps) const {
    if (step < steps) {
      auto& stage = shared.stage[step % Tile::kStages];
      fetch_x(stage, int64_t{step} * Tile::kStep);
      if (Bits != 0 && p.vectors)
        fetch_codes<Bits == 0 ? 1 : 4>(stage, step * Tile::kRuns);
      else
        fetch_codes<1>(stage, step * Tile::kRuns);
      fetch_constants(stage, step * Tile::kRuns);
    }
    simt::cp_async_commit();  // an empty group too: waits count them
  }

  /// Outlier columns [first, first + 16) to shared memory, zeros past the last one.
  __device__ void fetch_outliers(int first, int count) const {
    if constexpr (!std::is_void_v<T>) {
      constexpr int kColumns = OutlierTail<Tile, T>::kColumns;
      const ConstMatrix& x = p.outliers.x;
      const CodedMatrix& m = p.weight.matrix;
      for (int i = static_cast<int>(threadIdx.x); i < (Tile::kTileRows + Tile::kTileCols) * kColumns;
           i += Tile::kThreads) {
        const int k = i % kColumns;
        const int r = i / kColumns;
        const bool known = first + k < count;
        const int64_t col = known ? simt::load(p.outliers.columns + first + k) : 0;
        if (r < Tile::kTileRows) {
          const bool there = known && row0 + r < x.rows;
          shared.tail.x[r][k] = there ? simt::load(reinterpret_cast<const T*>(x.data) +
                                                   (row0 + r) * x.row_stride + col * x.col_stride)
                                      : T{};
        } else {
          const int n = r - Tile::kTileRows;
          const bool there = known && col0 + n < m.out;
          const int64_t byte = (col0 + n) * (m.row_bits / 8) + col;
          const int code = there ? simt::load(reinterpret_cast<const uint8_t*>(m.words) + byte) - 128 : 0;
          if constexpr (std::is_same_v<T, float>)
            shared.tail.codes[n][k] =
                there ? static_cast<float>(code) * simt::load(m.floats + col0 + n) / m.divisor : 0.0f;
          else
            shared.tail.codes[n][k] = simt::from_float<T>(static_cast<float>(code));
        }
      }
    }
  }
};

/// sum += x codes of a warp's part of the tail.
template <class Tile, class T>
__device__ __forceinline__ void multiply_tail(const OutlierTail<Tile, T>& tail, const WarpPlace<Tile>& warp,
                                              float (&sum)[Tile::kRows][Tile::kCols][4]) {
  if constexpr (std::is_same_v<T, float>) {
#pragma unroll 1
    for (int k = 0; k < OutlierTail<Tile, T>::kColumns; ++k) {
      float codes[Tile::kCols][2];
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) codes[j][e] = tail.codes[warp.col + j * 8 + warp.t * 2 + e][k];
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const float x = tail.x[warp.row + i * 16 + half * 8 + warp.g][k];
#pragma unroll
          for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
            for (int e = 0; e < 2; ++e)
              sum[i][j][half * 2 + e] = fmaf(x, codes[j][e], sum[i][j][half * 2 + e]);
        }
    }
  } else {
#pragma unroll
    for (int i = 0; i < Tile::kRows; ++i) {
      const int row = warp.row + i * 16 + warp.g;
      uint32_t a[4];
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        a[half] = simt::load_shared<uint32_t>(&tail.x[row + half * 8][warp.t * 2]);
        a[half + 2] = simt::load_shared<uint32_t>(&tail.x[row + half * 8][warp.t * 2 + 8]);
      }
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j) {
        const auto& codes = tail.codes[warp.col + j * 8 + warp.g];
        const uint32_t b[2] = {simt::load_shared<uint32_t>(&codes[warp.t * 2]),
                               simt::load_shared<uint32_t>(&codes[warp.t * 2 + 8])};
        simt::mma_m16n8k16<T>(sum[i][j], a, b);
      }
    }
  }
}

/// T: the activations' type where outlier columns are multiplied apart, else void.
template <class Tile, int Bits, class T>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kBlocks)
    int8_product(const __grid_constant__ Int8Product p) {
  auto& shared = simt::shared<Int8Shared<Tile, Bits, T>>();
  const CodedMatrix& m = p.weight.matrix;
  const WarpPlace<Tile> warp;
  const TilePlace place = place_of<Tile::kTileRows, Tile::kTileCols>(p.tiles, p.epilogue.c.rows, blockIdx.x);
  if (place.group < 0) return;
  const Int8Loop<Tile, Bits, T> loop{p, shared, place.row0, place.col0};
  shared.factors.find(p.tiles, place, p.rows.rows, 1, p.sources, p.weight.source());
  __syncthreads();  // the rows and the factors are known to all
  if (!shared.factors.right[0].there()) return;
  const int steps = (p.runs + Tile::kRuns - 1) / Tile::kRuns;
  const int middle = 1 << (loop.bits() - 1);
  float total[Tile::kRows][Tile::kCols][4] = {};
  int32_t sum[Tile::kRows][Tile::kCols][4] = {};  // of the group under way

  for (int step = 0; step < Tile::kStages - 1; ++step) loop.begin_step(step, steps);
  int64_t left = p.rows.runs_per_group;  // runs of the group under way
  for (int step = 0; step < steps; ++step) {
    simt::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this step's stage is there for all, and all have left that of the last step
    loop.begin_step(step + Tile::kStages - 1, steps);
    const auto& stage = shared.stage[step % Tile::kStages];
    int group = 0;  // of this step
#pragma unroll
    for (int run = 0; run < Tile::kRuns; ++run) {
      const int q = step * Tile::kRuns + run;
      if (q >= p.runs) break;
      uint32_t a[Tile::kRows][4];
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          const int row = warp.row + i * 16 + half * 8 + warp.g;
          const auto eight = simt::load_shared<uint2>(&stage.x[row][run * 32 + warp.t * 8]);
          a[i][half] = eight.x;
          a[i][half + 2] = eight.y;
        }
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j) {
        uint32_t b[2];
        signed_bytes<Bits>(&stage.codes[warp.col + j * 8 + warp.g][run * loop.bits()], warp.t, loop.bits(),
                           b);
#pragma unroll
        for (int i = 0; i < Tile::kRows; ++i) simt::mma_m16n8k32_s8(sum[i][j], a[i], b);
      }
      if (--left > 0 && q + 1 < p.runs) continue;
      left = p.rows.runs_per_group;
#pragma unroll
      for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
        for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int row = warp.row + i * 16 + e / 2 * 8 + warp.g;
            const int col = warp.col + j * 8 + warp.t * 2 + e % 2;
            float plain;
            if (loop.with_zeros()) {
              const int32_t of_row = stage.x_sums[group][row];
              plain = fmaf(-static_cast<float>(stage.zeros[group][col]), static_cast<float>(of_row),
                           static_cast<float>(sum[i][j][e] + middle * of_row));
            } else {
              plain = static_cast<float>(sum[i][j][e]);
            }
            const float x_scale = stage.x_scales[group][row];
            const float scale = stage.scales[group][col];
            total[i][j][e] =
                fmaf(plain * (p.rows.scale_divisor == 1 ? x_scale : x_scale / p.rows.scale_divisor),
                     m.divisor == 1 ? scale : scale / m.divisor, total[i][j][e]);
            sum[i][j][e] = 0;
          }
      ++group;
    }
  }

  if constexpr (!std::is_void_v<T>) {
    const int count = simt::load(p.outliers.count);
    float tail[Tile::kRows][Tile::kCols][4] = {};
    for (int first = 0; first < count; first += OutlierTail<Tile, T>::kColumns) {
      loop.fetch_outliers(first, count);
      __syncthreads();  // the columns are there for all
      multiply_tail(shared.tail, warp, tail);
      __syncthreads();  // all have left them
    }
    if (count > 0) {
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int64_t col = loop.col0 + warp.col + j * 8 + warp.t * 2 + e;
          float scale = 1;  // float32: it is in the weights
          if constexpr (!std::is_same_v<T, float>)
            scale = col < m.out ? simt::load(m.floats + col) / m.divisor : 0.0f;
#pragma unroll
          for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
            for (int half = 0; half < 2; ++half)
              total[i][j][half * 2 + e] += tail[i][j][half * 2 + e] * scale;
        }
    }
  }

  write_totals(p.tiles, place, warp, total,
               [&](int64_t row, int64_t col, float value) { p.epilogue.write(row, col, value); });
}

template <class Tile, int Bits, class T>
void launch_int8_tile(simt::Stream stream, const Int8Product& product) {
  const int64_t tiles =
      product.tiles.row_tiles * product_col_tiles(product.tiles, product.epilogue.c.cols, Tile::kTileCols);
  if (tiles > 0x7fffffff)
    fail(ErrorCode::unsupported, "a product of ", tiles, " tiles, at most 2^31 - 1 expected");
  simt::launch(int8_product<Tile, Bits, T>, dim3(static_cast<unsigned>(tiles)), dim3(Tile::kThreads),
               sizeof(Int8Shared<Tile, Bits, T>), stream, product);
}

/// Few rows: many blocks, each with little to do. Many: each code serves 64 rows, each activation 64
/// columns.
using FewInt8Rows = CodedTile<1, 4, 1, 1, 128, 3, 4>;
using ManyInt8Rows = CodedTile<2, 2, 2, 4, 64, 3, 3>;

template <int Bits, class T>
void launch_int8(simt::Stream stream, const Int8Product& product, int tile_rows) {
  tile_rows == FewInt8Rows::kTileRows ? launch_int8_tile<FewInt8Rows, Bits, T>(stream, product)
                                      : launch_int8_tile<ManyInt8Rows, Bits, T>(stream, product);
}

/// With outlier columns, of activations of any type.
void launch_llm_int8(simt::Stream stream, const Int8Product& product, int tile_rows);

}  // namespace quantaria::ops
