#include <cstddef>
#include <type_traits>

#include "core/error.h"
#include "ops/gemm/epilogue.cuh"
#include "ops/gemm/gemm_cuda.h"
#include "simt/simt.h"

namespace quantaria::ops {
namespace {

// 64 x 64 of c in a block of four warps, each 32 x 32 of it; k in steps of 32, three of them in shared
// memory.
constexpr int kTile = 64;
constexpr int kStep = 32;
constexpr int kStages = 3;
constexpr int kThreads = 128;
constexpr int kVector = 8;  // elements that one cp.async moves

/// Rows are 16 bytes longer than what they hold: eight consecutive ones begin in different banks for
/// ldmatrix.
template <int Rows, int Cols>
struct Tile {
  alignas(16) uint16_t element[Rows][Cols + kVector];
};

template <bool KFirst>
struct Stages {
  Tile<kTile, kStep> a[kStages];
  std::conditional_t<KFirst, Tile<kTile, kStep>, Tile<kStep, kTile>> b[kStages];
};

/// A matrix in global memory with unit stride along its columns.
struct Operand {
  const uint16_t* data;
  int64_t rows;
  int64_t cols;
  int64_t stride;
};

/// Begins to bring the part of `from` at (row, col) into the tile, zeros where there is none. Vectors: the
/// matrix's rows begin at multiples of 16 bytes and hold whole vectors.
template <bool Vectors, int Rows, int Cols>
__device__ __forceinline__ void fetch(Tile<Rows, Cols>& tile, const Operand& from, int64_t row, int64_t col) {
  constexpr int kAcross = Cols / kVector;
  for (int i = static_cast<int>(threadIdx.x); i < Rows * kAcross; i += kThreads) {
    const int r = i / kAcross;
    const int c = i % kAcross * kVector;
    const bool row_there = row + r < from.rows;
    const uint16_t* const source = from.data + (row_there ? row + r : 0) * from.stride + col + c;
    uint16_t* const target = &tile.element[r][c];
    if constexpr (Vectors) {
      const bool there = row_there && col + c < from.cols;
      simt::cp_async<16>(target, there ? source : from.data, there);
    } else {
#pragma unroll 1  // unrolled, the eight addresses spill
      for (int e = 0; e < kVector; ++e) {
        const bool there = row_there && col + c + e < from.cols;
        target[e] = there ? simt::load(source + e) : uint16_t{0};
      }
    }
  }
}

/// KFirst: b is given as [n, k], so that the unit stride is along k.
template <class T, bool KFirst, bool Vectors>
__global__ void __launch_bounds__(kThreads, 4) gemm(Operand a, Operand b, int64_t k, Epilogue epilogue) {
  auto& stages = simt::shared<Stages<KFirst>>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  // Blocks side by side share their columns: the tile of the weight stays in the second-level cache.
  const int64_t row_tiles = (a.rows + kTile - 1) / kTile;
  const int64_t row0 = blockIdx.x % row_tiles * kTile;
  const int64_t col0 = blockIdx.x / row_tiles * kTile;
  const int steps = static_cast<int>((k + kStep - 1) / kStep);

  const auto begin_step = [&](int step) {
    if (step < steps) {
      const int64_t k0 = int64_t{step} * kStep;
      fetch<Vectors>(stages.a[step % kStages], a, row0, k0);
      if constexpr (KFirst)
        fetch<Vectors>(stages.b[step % kStages], b, col0, k0);
      else
        fetch<Vectors>(stages.b[step % kStages], b, k0, col0);
    }
    simt::cp_async_commit();  // an empty group too: waits count them
  };

  float sum[2][4][4] = {};
  const int warp_row = warp / 2 * 32;
  const int warp_col = warp % 2 * 32;
  for (int step = 0; step < kStages - 1; ++step) begin_step(step);
  for (int step = 0; step < steps; ++step) {
    simt::cp_async_wait<kStages - 2>();
    __syncthreads();  // this step's tiles are there for every warp, and every warp has left those of the last
                      // step
    begin_step(step + kStages - 1);
    const auto& tile_a = stages.a[step % kStages].element;
    const auto& tile_b = stages.b[step % kStages].element;
#pragma unroll
    for (int kk = 0; kk < kStep; kk += 16) {
      uint32_t fa[2][4];
      uint32_t fb[2][4];  // of two neighbouring 8-column tiles each
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        simt::ldmatrix(fa[i], &tile_a[warp_row + i * 16 + lane % 16][kk + lane / 16 * 8]);
        const int n = warp_col + i * 16 + lane / 16 * 8;
        const int k_of_lane = kk + lane / 8 % 2 * 8;
        if constexpr (KFirst)
          simt::ldmatrix(fb[i], &tile_b[n + lane % 8][k_of_lane]);
        else
          simt::ldmatrix<4, true>(fb[i], &tile_b[k_of_lane + lane % 8][n]);
      }
#pragma unroll
      for (int i = 0; i < 2; ++i)
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t pair[2] = {fb[j / 2][j % 2 * 2], fb[j / 2][j % 2 * 2 + 1]};
          simt::mma_m16n8k16<T>(sum[i][j], fa[i], pair);
        }
    }
  }

#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int j = 0; j < 4; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        epilogue.write(row0 + warp_row + i * 16 + lane / 4 + e / 2 * 8,
                       col0 + warp_col + j * 8 + lane % 4 * 2 + e % 2, sum[i][j][e]);
}

bool holds_vectors(const Operand& operand) {
  return reinterpret_cast<uintptr_t>(operand.data) % 16 == 0 && operand.cols % kVector == 0 &&
         (operand.rows <= 1 || operand.stride % kVector == 0);
}

template <class T, bool KFirst>
void launch_gemm(simt::Stream stream, const Operand& a, const Operand& b, const Epilogue& epilogue) {
  const int64_t tiles = ((a.rows + kTile - 1) / kTile) * ((epilogue.c.cols + kTile - 1) / kTile);
  if (tiles > 0x7fffffff)
    fail(ErrorCode::unsupported, "a product of ", tiles, " tiles, at most 2^31 - 1 expected");
  const auto kernel = holds_vectors(a) && holds_vectors(b) ? gemm<T, KFirst, true> : gemm<T, KFirst, false>;
  simt::launch(kernel, dim3(static_cast<unsigned>(tiles)), dim3(kThreads), sizeof(Stages<KFirst>), stream, a,
               b, a.cols, epilogue);
}

}  // namespace

void gemm_cuda(void* opaque_stream, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias,
               const Matrix& c) {
  if (a.cols != b.rows || a.rows != c.rows || b.cols != c.cols)
    fail(ErrorCode::shape, "a product of ", a.rows, " x ", a.cols, " and ", b.rows, " x ", b.cols, " into ",
         c.rows, " x ", c.cols);
  if (c.rows == 0 || c.cols == 0) return;
  const bool k_first = b.row_stride == 1;
  const bool tensor_cores = a.dtype == b.dtype && a.dtype != DType::float32 &&
                            (a.col_stride == 1 || a.cols == 1) && (k_first || b.col_stride == 1);
  if (!tensor_cores) return gemm_float32_cuda(opaque_stream, a, b, bias, c);
  const auto bits = [](const ConstMatrix& m) { return reinterpret_cast<const uint16_t*>(m.data); };
  const Operand left{bits(a), a.rows, a.cols, a.row_stride};
  const Operand right = k_first ? Operand{bits(b), b.cols, b.rows, b.col_stride}
                                : Operand{bits(b), b.rows, b.cols, b.row_stride};
  const Epilogue epilogue = epilogue_of(bias, c);
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  if (a.dtype == DType::float16)
    k_first ? launch_gemm<simt::Half, true>(stream, left, right, epilogue)
            : launch_gemm<simt::Half, false>(stream, left, right, epilogue);
  else
    k_first ? launch_gemm<simt::Bfloat16, true>(stream, left, right, epilogue)
            : launch_gemm<simt::Bfloat16, false>(stream, left, right, epilogue);
}

}  // namespace quantaria::ops
