#pragma once

#include <type_traits>

#include "core/error.h"
#include "ops/gemm/dense_product.cuh"
#include "simt/simt.h"

/// Products in float32 without tensor cores: of float32 factors, which tensor cores would round, and of
/// weights that the loops of tensor cores do not read.
namespace quantaria::ops {

// 64 x 64 of c in a block of 256 threads, 4 x 4 each; k in steps of 16, in two halves of shared memory.
constexpr int kFmaTile = kFmaTileRows;
constexpr int kFmaStep = 16;
constexpr int kFmaThreads = 256;

/// Rows of a step are along the tile, so that a thread reads its four values as one vector. Four more a row
/// keep the vectors aligned and put the writes of neighbouring steps into different banks.
struct alignas(16) FmaSlab {
  float value[kFmaStep][kFmaTile + 4];
};

template <class Right>
struct FmaShared {
  FmaSlab left[2];
  FmaSlab right[2];
  typename Right::Shared decoder;
  int64_t left_row[kFmaTile];  // the row of the left factor that each row reads; -1 if there is none
  typename Right::Source source[2];
};

/// A matrix as it lies, of any float dtype and strides; `rows` are those of c for the left factor, its
/// columns for the right one.
template <bool AlongSteps>
struct DenseRows {
  struct Shared {};
  using Source = DenseSource;
  static constexpr bool kAlongSteps = AlongSteps;  // neighbouring threads read neighbouring k
  Source own;
  DType dtype;
  int64_t row_stride;
  int64_t step_stride;

  __device__ const Source& source() const { return own; }
  __device__ void fetch_table(Shared&) const {}
  template <class AnyShared>
  __device__ float value(const AnyShared&, const Source& source, int64_t row, int64_t k) const {
    return load_float(dtype, source.data, row * row_stride + k * step_stride);
  }
};

/// c = left right^T: left [m, k] and right [n, k] are read by value(shared, source, row, k), once for each
/// tile. Sums run along k in order, with one rounding a term. Grouped as ProductTiles says: the right factors
/// of groups are then those of `sources`, in device memory.
template <class Left, class Right>
__global__ void __launch_bounds__(kFmaThreads)
    fma_product(const __grid_constant__ Left left, int64_t left_rows, const __grid_constant__ Right right,
                const typename Right::Source* sources, int64_t k, ProductTiles tiles, Epilogue epilogue) {
  auto& shared = simt::shared<FmaShared<Right>>();
  const int thread = static_cast<int>(threadIdx.x);
  const TilePlace place = place_of<kFmaTile, kFmaTile>(tiles, epilogue.c.rows, blockIdx.x);
  if (place.group < 0) return;
  if (thread < kFmaTile) {
    shared.left_row[thread] = left_row_of(tiles, place.row0 + thread, place.row_end, left_rows);
  } else if (const int factor = thread - kFmaTile; factor <= (tiles.paired ? 1 : 0)) {
    const int64_t source = int64_t{place.group} * (tiles.paired ? 2 : 1) + factor;
    shared.source[factor] = sources ? simt::load(sources + source) : right.source();
  }
  right.fetch_table(shared.decoder);
  __syncthreads();  // the rows and factors are known to all
  if (!shared.source[0].there()) return;

  constexpr int kRun = 1;  // pairs of columns are neighbours, as each thread's are
  constexpr int kEach = kFmaTile * kFmaStep / kFmaThreads;
  const auto fetch = [&](const auto& factor, FmaSlab& slab, int64_t k0, const auto& value) {
    constexpr bool kAlongSteps = std::remove_reference_t<decltype(factor)>::kAlongSteps;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int at = i * kFmaThreads + thread;
      const int row = kAlongSteps ? at / kFmaStep : at % kFmaTile;
      const int step = kAlongSteps ? at % kFmaStep : at / kFmaTile;
      slab.value[step][row] = k0 + step < k ? value(row, k0 + step) : 0.0f;
    }
  };
  const auto left_value = [&](int row, int64_t at) {
    const int64_t from = shared.left_row[row];
    return from < 0 ? 0.0f : left.value(shared.decoder, left.source(), from, at);
  };
  const auto right_value = [&](int row, int64_t at) {
    const TileColumn column = column_of<kRun>(tiles, row);
    const int64_t from = place.col0 + column.col;
    return from < epilogue.c.cols ? right.value(shared.decoder, shared.source[column.factor], from, at)
                                  : 0.0f;
  };

  float sum[4][4] = {};
  const int row = thread / 16 * 4;
  const int col = thread % 16 * 4;
  for (int64_t k0 = 0, half = 0; k0 < k; k0 += kFmaStep, half ^= 1) {
    // Into the half that was read two steps ago: the barrier of the last step came after that.
    fetch(left, shared.left[half], k0, left_value);
    fetch(right, shared.right[half], k0, right_value);
    __syncthreads();
#pragma unroll
    for (int step = 0; step < kFmaStep; ++step) {
      float a[4];
      float b[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = shared.left[half].value[step][row + i];
        b[i] = shared.right[half].value[step][col + i];
      }
#pragma unroll
      for (int i = 0; i < 4; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) sum[i][j] = fmaf(a[i], b[j], sum[i][j]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const int64_t to = result_row_of(tiles, place.row0 + row + i, place.row_end);
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int64_t at = place.col0 + column_of<kRun>(tiles, col + j).col;
      float value = sum[i][j];
      if (tiles.paired) {
        if (j % 2 == 1) continue;  // the up of the pair before
        value = swiglu(value, sum[i][j + 1]);
      }
      epilogue.write(to, at, value);
    }
  }
}

template <class Left, class Right>
void launch_fma_product(simt::Stream stream, const Left& left, int64_t left_rows, const Right& right,
                        const typename Right::Source* sources, int64_t k, const ProductTiles& tiles,
                        const Epilogue& epilogue) {
  const int64_t count = tiles.row_tiles * product_col_tiles(tiles, epilogue.c.cols, kFmaTile);
  if (count > 0x7fffffff)
    fail(ErrorCode::unsupported, "a product of ", count, " tiles, at most 2^31 - 1 expected");
  if (count == 0) return;
  simt::launch(fma_product<Left, Right>, dim3(static_cast<unsigned>(count)), dim3(kFmaThreads),
               sizeof(FmaShared<Right>), stream, left, left_rows, right, sources, k, tiles, epilogue);
}

/// One right factor for all rows.
template <class Left, class Right>
void launch_fma_product(simt::Stream stream, const Left& left, const Right& right, int64_t k,
                        const Epilogue& epilogue) {
  launch_fma_product(stream, left, epilogue.c.rows, right, nullptr, k,
                     tiles_of_rows(epilogue.c.rows, kFmaTile), epilogue);
}

}  // namespace quantaria::ops
