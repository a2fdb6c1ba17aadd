#pragma once

#include <type_traits>

#include "core/error.h"
#include "ops/gemm/epilogue.cuh"
#include "simt/simt.h"

/// Products in float32 without tensor cores: of float32 factors, which tensor cores would round, and of
/// weights that the loops of tensor cores do not read.
namespace quantaria::ops {

// 64 x 64 of c in a block of 256 threads, 4 x 4 each; k in steps of 16, in two halves of shared memory.
constexpr int kFmaTile = 64;
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
};

/// A matrix as it lies, of any float dtype and strides; `rows` are those of c for the left factor, its
/// columns for the right one.
template <bool AlongSteps>
struct DenseRows {
  struct Shared {};
  static constexpr bool kAlongSteps = AlongSteps;  // neighbouring threads read neighbouring k
  const std::byte* data;
  DType dtype;
  int64_t row_stride;
  int64_t step_stride;

  __device__ void prepare(Shared&) const {}
  template <class AnyShared>
  __device__ float value(const AnyShared&, int64_t row, int64_t k) const {
    return load_float(dtype, data, row * row_stride + k * step_stride);
  }
};

/// c = left right^T: left [m, k] and right [n, k] are read by value(shared, row, k), once for each tile.
/// Sums run along k in order, with one rounding a term.
template <class Left, class Right>
__global__ void __launch_bounds__(kFmaThreads)
    fma_product(const __grid_constant__ Left left, const __grid_constant__ Right right, int64_t k,
                Epilogue epilogue) {
  auto& shared = simt::shared<FmaShared<Right>>();
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t row_tiles = (epilogue.c.rows + kFmaTile - 1) / kFmaTile;
  const int64_t row0 = blockIdx.x % row_tiles * kFmaTile;
  const int64_t col0 = blockIdx.x / row_tiles * kFmaTile;
  right.prepare(shared.decoder);

  constexpr int kEach = kFmaTile * kFmaStep / kFmaThreads;
  const auto fetch = [&](const auto& factor, FmaSlab& slab, int64_t first, int64_t rows, int64_t k0) {
    constexpr bool kAlongSteps = std::remove_reference_t<decltype(factor)>::kAlongSteps;
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      const int place = i * kFmaThreads + thread;
      const int row = kAlongSteps ? place / kFmaStep : place % kFmaTile;
      const int step = kAlongSteps ? place % kFmaStep : place / kFmaTile;
      const bool there = first + row < rows && k0 + step < k;
      slab.value[step][row] = there ? factor.value(shared.decoder, first + row, k0 + step) : 0.0f;
    }
  };

  float sum[4][4] = {};
  const int row = thread / 16 * 4;
  const int col = thread % 16 * 4;
  for (int64_t k0 = 0, half = 0; k0 < k; k0 += kFmaStep, half ^= 1) {
    // Into the half that was read two steps ago: the barrier of the last step came after that.
    fetch(left, shared.left[half], row0, epilogue.c.rows, k0);
    fetch(right, shared.right[half], col0, epilogue.c.cols, k0);
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
  for (int i = 0; i < 4; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j) epilogue.write(row0 + row + i, col0 + col + j, sum[i][j]);
}

template <class Left, class Right>
void launch_fma_product(simt::Stream stream, const Left& left, const Right& right, int64_t k,
                        const Epilogue& epilogue) {
  const Matrix& c = epilogue.c;
  const int64_t tiles = ((c.rows + kFmaTile - 1) / kFmaTile) * ((c.cols + kFmaTile - 1) / kFmaTile);
  if (tiles > 0x7fffffff)
    fail(ErrorCode::unsupported, "a product of ", tiles, " tiles, at most 2^31 - 1 expected");
  if (tiles == 0) return;
  simt::launch(fma_product<Left, Right>, dim3(static_cast<unsigned>(tiles)), dim3(kFmaThreads),
               sizeof(FmaShared<Right>), stream, left, right, k, epilogue);
}

}  // namespace quantaria::ops
