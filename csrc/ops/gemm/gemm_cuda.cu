#include <cstddef>
#include <type_traits>

#include "core/error.h"
#include "ops/gemm/dense_product.cuh"
#include "ops/gemm/gemm_cuda.h"
#include "ops/gemm/thread_pieces.cuh"

namespace quantaria::ops {
namespace {

// 64 x 64 of c in a block of four warps, each 32 x 32 of it; k in steps of 32, three of them in shared
// memory.
constexpr int kTile = kDenseTileRows;
constexpr int kStep = 32;
constexpr int kStages = 3;
constexpr int kThreads = 128;
constexpr int kBlocks = 5;  // that a multiprocessor is to hold; without vectors one fewer, for its registers
constexpr int kVector = 8;  // elements that one cp.async moves
constexpr int kRun = 8;     // columns of one accumulator

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
  int64_t left[kTile];       // where each row of the left factor begins; -1 if there is none
  const uint16_t* right[2];  // of a plain product the first one alone
  bool unfinished;           // of blocks that share the tile's columns, some are still to come
};

/// A matrix in global memory with unit stride along its columns.
struct Operand {
  const uint16_t* data;
  int64_t rows;
  int64_t cols;
  int64_t stride;
};

/// Where the elements of a piece lie, and how many neighbours there are; none: <= 0.
struct Piece {
  const uint16_t* from;
  int64_t count;
};

/// What a thread brings of a factor into each step's tile, KAlong: whose rows run along k, else columns. It
/// works out once which pieces are its own: a step moves on by a constant, and asks only where k ends.
template <int Rows, int Cols, bool KAlong>
struct FactorPieces {
  using Pieces = ThreadPieces<Rows, Cols / kVector, kThreads>;
  static constexpr int kNowhere = 0x7fffffff;

  const uint16_t* from[Pieces::kCount];
  int k[Pieces::kCount];      // of the step; of a piece that is not there beyond any
  int count[Pieces::kCount];  // of its elements, where they do not run along k

  /// `piece(row, col)` of the first step's tile, k being endless.
  template <class PieceAt>
  __device__ __forceinline__ explicit FactorPieces(const PieceAt& piece) {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) {
      const int r = Pieces::row(j);
      const int c = Pieces::across(j) * kVector;
      const Piece p = piece(r, c);
      from[j] = p.from;
      k[j] = p.count <= 0 ? kNowhere : KAlong ? c : r;
      count[j] = static_cast<int>(p.count < kVector ? p.count : kVector);
    }
  }

  /// Begins to bring the pieces, zeros where there are none past the step's `ks`. Vectors: all begin at
  /// multiples of 16 bytes and are whole.
  template <bool Vectors>
  __device__ __forceinline__ void fetch(Tile<Rows, Cols>& tile, int ks) const {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) {
      uint16_t* const target = &tile.element[Pieces::row(j)][Pieces::across(j) * kVector];
      if constexpr (Vectors) {
        simt::cp_async<16>(target, from[j], k[j] < ks);
      } else {
#pragma unroll 1  // unrolled, the eight addresses spill
        for (int e = 0; e < kVector; ++e) {
          const bool there = KAlong ? k[j] < ks - e : k[j] < ks && e < count[j];
          target[e] = there ? simt::load(from[j] + e) : uint16_t{0};
        }
      }
    }
  }

  __device__ __forceinline__ void move_on(int64_t elements) {
#pragma unroll
    for (int j = 0; j < Pieces::kCount; ++j) from[j] += elements;
  }
};

struct DenseProduct {
  Operand a;
  Operand b;  // KFirst: given as [n, k], so that the unit stride is along k; else [k, n]
  const DenseSource* sources;
  ProductTiles tiles;
  ColumnSplits splits;
  Epilogue epilogue;
};

template <class T, bool KFirst, bool Vectors>
__global__ void __launch_bounds__(kThreads, Vectors ? kBlocks : kBlocks - 1)
    gemm(const __grid_constant__ DenseProduct p) {
  auto& stages = simt::shared<Stages<KFirst>>();
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const TilePlace place = place_of<kTile, kTile>(p.tiles, p.epilogue.c.rows, blockIdx.x);
  if (place.group < 0) return;
  if (static_cast<int>(threadIdx.x) < kTile) {
    const int64_t row =
        left_row_of(p.tiles, place.row0 + static_cast<int>(threadIdx.x), place.row_end, p.a.rows);
    stages.left[threadIdx.x] = row < 0 ? -1 : row * p.a.stride;
  } else if (const int factor = static_cast<int>(threadIdx.x) - kTile; factor <= (p.tiles.paired ? 1 : 0)) {
    const int64_t source = int64_t{place.group} * (p.tiles.paired ? 2 : 1) + factor;
    stages.right[factor] =
        p.sources ? reinterpret_cast<const uint16_t*>(simt::load(p.sources + source).data) : p.b.data;
  }
  __syncthreads();  // the rows and factors are known to all
  if (!stages.right[0]) return;

  const int64_t k = p.a.cols;
  const int steps = static_cast<int>((k + kStep - 1) / kStep);
  const int begin = static_cast<int>(int64_t{steps} * blockIdx.y / gridDim.y);
  const int end = static_cast<int>(int64_t{steps} * (blockIdx.y + 1) / gridDim.y);
  const int last_ks = end < steps ? kStep : static_cast<int>(k - int64_t{steps - 1} * kStep);
  const int64_t cols = KFirst ? p.b.rows : p.b.cols;
  FactorPieces<kTile, kStep, true> pieces_a([&](int r, int c) -> Piece {
    const int64_t left = stages.left[r];
    return {p.a.data + (left < 0 ? 0 : left + c), left < 0 ? 0 : kVector};
  });
  FactorPieces<KFirst ? kTile : kStep, KFirst ? kStep : kTile, KFirst> pieces_b([&](int r, int c) -> Piece {
    const TileColumn column = column_of<kRun>(p.tiles, KFirst ? r : c);
    const int64_t col = place.col0 + column.col;
    const uint16_t* const data = stages.right[column.factor];
    if constexpr (KFirst)
      return {data + (col < cols ? col * p.b.stride + c : 0), col < cols ? kVector : 0};
    else
      return {data + (col < cols ? r * p.b.stride + col : 0), cols - col};
  });
  pieces_a.move_on(int64_t{begin} * kStep);
  pieces_b.move_on(begin * (KFirst ? int64_t{kStep} : kStep * p.b.stride));
  int unbegun = end - begin;  // steps, and the stage of the next one
  int to = 0;
  const auto begin_step = [&] {
    if (unbegun > 0) {
      const int ks = unbegun > 1 ? kStep : last_ks;
      pieces_a.template fetch<Vectors>(stages.a[to], ks);
      pieces_b.template fetch<Vectors>(stages.b[to], ks);
      pieces_a.move_on(kStep);
      pieces_b.move_on(KFirst ? kStep : kStep * p.b.stride);
      --unbegun;
      to = to + 1 == kStages ? 0 : to + 1;
    }
    simt::cp_async_commit();  // an empty group too: waits count them
  };

  float sum[2][4][4] = {};
  const int warp_row = warp / 2 * 32;
  const int warp_col = warp % 2 * 32;
  for (int stage = 0; stage < kStages - 1; ++stage) begin_step();
  int at = 0;  // this step's stage
  for (int left = end - begin; left > 0; --left) {
    simt::cp_async_wait<kStages - 2>();
    __syncthreads();  // this step's tiles are there for every warp, and every warp has left those of the last
                      // step
    begin_step();
    const auto& tile_a = stages.a[at].element;
    const auto& tile_b = stages.b[at].element;
    at = at + 1 == kStages ? 0 : at + 1;
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

  if (p.splits.sums && !add_splits(p.splits, stages.unfinished, sum)) return;
#pragma unroll
  for (int i = 0; i < 2; ++i)
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int64_t row =
          result_row_of(p.tiles, place.row0 + warp_row + i * 16 + lane / 4 + half * 8, place.row_end);
#pragma unroll
      for (int j = 0; j < 4; ++j)
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          const TileColumn column = column_of<kRun>(p.tiles, warp_col + j * 8 + lane % 4 * 2 + e);
          float value = sum[i][j][half * 2 + e];
          if (p.tiles.paired) {
            if (j % 2 == 1) continue;  // the up of the pair before
            value = swiglu(value, sum[i][j + 1][half * 2 + e]);
          }
          p.epilogue.write(row, place.col0 + column.col, value);
        }
    }
}

bool holds_vectors(const Operand& operand) {
  return reinterpret_cast<uintptr_t>(operand.data) % 16 == 0 && operand.cols % kVector == 0 &&
         (operand.rows <= 1 || operand.stride % kVector == 0);
}

template <class T, bool KFirst>
void launch_gemm(simt::Stream stream, const DenseProduct& product, int splits, bool aligned) {
  const int64_t tiles =
      product.tiles.row_tiles * product_col_tiles(product.tiles, product.epilogue.c.cols, kTile);
  if (tiles > 0x7fffffff)
    fail(ErrorCode::unsupported, "a product of ", tiles, " tiles, at most 2^31 - 1 expected");
  const auto kernel = aligned ? gemm<T, KFirst, true> : gemm<T, KFirst, false>;
  simt::launch(kernel, dim3(static_cast<unsigned>(tiles), static_cast<unsigned>(splits)), dim3(kThreads),
               sizeof(Stages<KFirst>), stream, product);
}

/// A block's share is to be worth the sums that it leaves, which have the bytes of two steps' factors. Where
/// every multiprocessor has its blocks, tensor cores have enough to do, and sums would only be in their way.
ColumnShares shares_of(int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kLeastSteps = 8;
  const int64_t tiles = (m + kTile - 1) / kTile * ((n + kTile - 1) / kTile);
  if (tiles > cuda::kMultiprocessors * kBlocks) return {1, 0};
  return column_shares<kBlocks>(tiles, int64_t{kTile} * kTile, (k + kStep - 1) / kStep, kLeastSteps);
}

}  // namespace

bool dense_on_tensor_cores(const ConstMatrix& a, const ConstMatrix& b) {
  return a.dtype == b.dtype && a.dtype != DType::float32 && (a.col_stride == 1 || a.cols == 1) &&
         (b.row_stride == 1 || b.col_stride == 1);
}

void launch_dense_product(const DenseCall& call) {
  const bool k_first = call.b.row_stride == 1;
  const auto bits = [](const ConstMatrix& m) { return reinterpret_cast<const uint16_t*>(m.data); };
  const ConstMatrix& b = call.b;
  const DenseProduct product{{bits(call.a), call.a.rows, call.a.cols, call.a.row_stride},
                             k_first ? Operand{bits(b), b.cols, b.rows, b.col_stride}
                                     : Operand{bits(b), b.rows, b.cols, b.row_stride},
                             call.sources,
                             call.tiles,
                             call.splits > 1 ? call.sums : ColumnSplits{},
                             call.epilogue};
  const bool aligned = holds_vectors(product.a) && holds_vectors(product.b) &&
                       (call.sources == nullptr || call.sources_aligned);
  if (call.a.dtype == DType::float16)
    k_first ? launch_gemm<simt::Half, true>(call.stream, product, call.splits, aligned)
            : launch_gemm<simt::Half, false>(call.stream, product, call.splits, aligned);
  else
    k_first ? launch_gemm<simt::Bfloat16, true>(call.stream, product, call.splits, aligned)
            : launch_gemm<simt::Bfloat16, false>(call.stream, product, call.splits, aligned);
}

int64_t gemm_workspace(const ConstMatrix& a, const ConstMatrix& b) {
  return dense_on_tensor_cores(a, b) ? shares_of(a.rows, b.cols, a.cols).bytes : 0;
}

void gemm_cuda(void* opaque_stream, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias,
               const Matrix& c, std::byte* workspace, unsigned* arrivals) {
  if (a.cols != b.rows || a.rows != c.rows || b.cols != c.cols)
    fail(ErrorCode::shape, "a product of ", a.rows, " x ", a.cols, " and ", b.rows, " x ", b.cols, " into ",
         c.rows, " x ", c.cols);
  if (c.rows == 0 || c.cols == 0) return;
  if (!dense_on_tensor_cores(a, b)) return gemm_float32_cuda(opaque_stream, a, b, bias, c);
  launch_dense_product({static_cast<simt::Stream>(opaque_stream),
                        a,
                        b,
                        nullptr,
                        false,
                        tiles_of_rows(c.rows, kTile),
                        epilogue_of(bias, c),
                        shares_of(c.rows, c.cols, a.cols).splits,
                        {reinterpret_cast<float4*>(workspace), arrivals}});
}

}  // namespace quantaria::ops
