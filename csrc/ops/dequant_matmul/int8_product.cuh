#pragma once

#include <type_traits>

#include "core/error.h"
#include "ops/dequant_matmul/int8_fetch.cuh"

/// The loop of integer products on tensor cores: int8 activations times a weight's codes, int32 sums inside a
/// group, which its scales bring to float32 in the order of groups: the bits of the CPU's
/// (byte_rows.h). Lane t of a quad takes columns 8 t .. 8 t + 7 of a run of 32, as in decoders.cuh.
namespace quantaria::ops {

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

/// Outlier columns [first, first + 16) to shared memory, zeros past the last one.
template <class Tile, class T>
__device__ __forceinline__ void fetch_outliers(OutlierTail<Tile, T>& tail, const Int8Product& p,
                                               const TilePlace& place, int first, int count) {
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
      const bool there = known && place.row0 + r < x.rows;
      tail.x[r][k] = there ? simt::load(reinterpret_cast<const T*>(x.data) + (place.row0 + r) * x.row_stride +
                                        col * x.col_stride)
                           : T{};
    } else {
      const int n = r - Tile::kTileRows;
      const bool there = known && place.col0 + n < m.out;
      const int64_t byte = (place.col0 + n) * (m.row_bits / 8) + col;
      const int code = there ? simt::load(reinterpret_cast<const uint8_t*>(m.words) + byte) - 128 : 0;
      if constexpr (std::is_same_v<T, float>)
        tail.codes[n][k] =
            there ? static_cast<float>(code) * simt::load(m.floats + place.col0 + n) / m.divisor : 0.0f;
      else
        tail.codes[n][k] = simt::from_float<T>(static_cast<float>(code));
    }
  }
}

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

/// total += the group's sums in float32, which begin anew.
template <class Tile, int Bits>
__device__ __forceinline__ void add_group(const Int8Product& p, const Int8Stage<Tile, Bits>& stage, int group,
                                          const WarpPlace<Tile>& warp, bool with_zeros, int middle,
                                          int32_t (&sum)[Tile::kRows][Tile::kCols][4],
                                          float (&total)[Tile::kRows][Tile::kCols][4]) {
  const float x_divisor = p.rows.scale_divisor;
  const float divisor = p.weight.matrix.divisor;
  float scale[Tile::kCols][2];
#pragma unroll
  for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float stored = stage.scales[group][warp.col + j * 8 + warp.t * 2 + e];
      scale[j][e] = divisor == 1 ? stored : stored / divisor;
    }
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = warp.row + i * 16 + half * 8 + warp.g;
      const float stored = stage.x_scales[group][row];
      const float x_scale = x_divisor == 1 ? stored : stored / x_divisor;
      const int32_t of_row = with_zeros ? stage.x_sums[group][row] : 0;
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          int32_t& whole = sum[i][j][half * 2 + e];
          float plain = static_cast<float>(whole);
          if (with_zeros) {
            const int32_t zero = stage.zeros[group][warp.col + j * 8 + warp.t * 2 + e];
            plain = fmaf(-static_cast<float>(zero), static_cast<float>(of_row),
                         static_cast<float>(whole + middle * of_row));
          }
          float& added = total[i][j][half * 2 + e];
          added = fmaf(plain * x_scale, scale[j][e], added);
          whole = 0;
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
  const TilePlace found = place_of<Tile::kTileRows, Tile::kTileCols>(p.tiles, p.epilogue.c.rows, blockIdx.x);
  if (found.group < 0) return;
  shared.factors.find(p.tiles, found, p.rows.rows, 1, p.sources, p.weight.source());
  __syncthreads();  // the rows and the factors are known to all
  if (!shared.factors.right[0].there()) return;
  const TilePlace& place = shared.factors.place;
  const bool with_zeros = m.zeros != nullptr;
  const int bits = Bits == 0 ? m.bits : Bits;
  const int middle = 1 << (bits - 1);
  float total[Tile::kRows][Tile::kCols][4] = {};
  int32_t sum[Tile::kRows][Tile::kCols][4] = {};  // of the group under way

  Int8Fetch<Tile, Bits> fetch(p, shared.stage, shared.factors);
  for (int stage = 0; stage < Tile::kStages - 1; ++stage) fetch.begin_step();
  GroupEnds group_ends(p.steps, 0, p.steps.runs);
  int at = 0;  // this step's stage
  for (int step = 0; step < p.steps.steps; ++step) {
    simt::cp_async_wait<Tile::kStages - 2>();
    __syncthreads();  // this step's stage is there for all, and all have left that of the last step
    fetch.begin_step();
    const auto& stage = shared.stage[at];
    at = at + 1 == Tile::kStages ? 0 : at + 1;
    int group = 0;  // of this step
#pragma unroll
    for (int run = 0; run < Tile::kRuns; ++run) {
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
        signed_bytes<Bits>(&stage.codes[warp.col + j * 8 + warp.g][run * bits], warp.t, bits, b);
#pragma unroll
        for (int i = 0; i < Tile::kRows; ++i) simt::mma_m16n8k32_s8(sum[i][j], a[i], b);
      }
      if (!group_ends.after(run)) continue;
      add_group(p, stage, group, warp, with_zeros, middle, sum, total);
      if (!group_ends.next()) break;
      ++group;
    }
    group_ends.step_done(Tile::kRuns);
  }

  if constexpr (!std::is_void_v<T>) {
    const int count = simt::load(p.outliers.count);
    float tail[Tile::kRows][Tile::kCols][4] = {};
    for (int first = 0; first < count; first += OutlierTail<Tile, T>::kColumns) {
      fetch_outliers(shared.tail, p, place, first, count);
      __syncthreads();  // the columns are there for all
      multiply_tail(shared.tail, warp, tail);
      __syncthreads();  // all have left them
    }
    if (count > 0) {
#pragma unroll
      for (int j = 0; j < Tile::kCols; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const int64_t col = place.col0 + warp.col + j * 8 + warp.t * 2 + e;
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
void launch_int8_tile(simt::Stream stream, Int8Product product) {
  const Int8Rows& x = product.rows;
  product.steps = steps_of_groups<Tile>(x.groups * x.runs_per_group, x.runs_per_group);
  const int64_t before = std::max<int64_t>(0, int64_t{product.steps.steps} - 1);
  product.steps.last_columns = static_cast<int>(x.row_bytes - before * Tile::kStep);
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
