#include <cstddef>

#include "core/dtype.h"
#include "core/error.h"
#include "cuda/grid.h"
#include "ops/copy/cast_value.cuh"
#include "ops/copy/copy_cuda.h"
#include "simt/simt.h"

namespace quantaria::ops {
namespace {

constexpr unsigned kThreads = 256;

/// Bytes in a row, both sides aligned to 16; `rest` (under 16) bytes follow the `count` vectors.
__global__ void __launch_bounds__(kThreads)
    copy_bytes(const std::byte* from, std::byte* to, int64_t count, int rest) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride)
    simt::store(reinterpret_cast<uint4*>(to) + i, simt::load(reinterpret_cast<const uint4*>(from) + i));
  if (blockIdx.x == 0 && static_cast<int>(threadIdx.x) < rest)
    to[count * 16 + threadIdx.x] = from[count * 16 + threadIdx.x];
}

/// Elements of one width at any strides; neighbouring threads take neighbouring columns.
template <class Bits>
__global__ void __launch_bounds__(kThreads)
    copy_elements(const Bits* from, int64_t from_row, int64_t from_col, Bits* to, int64_t to_row,
                  int64_t to_col, int64_t rows, int64_t cols) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < rows * cols; i += stride) {
    const int64_t r = i / cols;
    const int64_t c = i % cols;
    simt::store(to + r * to_row + c * to_col, simt::load(from + r * from_row + c * from_col));
  }
}

constexpr int kTile = 32;

/// One element more a row than it holds: columns are read without bank conflicts.
template <class Bits>
struct TransposeTile {
  Bits element[kTile][kTile + 1];
};

/// to[r * to_row + c] = from[c * from_col + r]: rows of the source are columns here. Both are walked along
/// their rows.
template <class Bits>
__global__ void __launch_bounds__(kThreads)
    transpose(const Bits* from, int64_t from_col, Bits* to, int64_t to_row, int64_t rows, int64_t cols) {
  auto& tile = simt::shared<TransposeTile<Bits>>();
  const int x = static_cast<int>(threadIdx.x) % kTile;
  const int y = static_cast<int>(threadIdx.x) / kTile;
  constexpr int kStep = kThreads / kTile;
  const int64_t tiles_across = (cols + kTile - 1) / kTile;
  const int64_t tiles = tiles_across * ((rows + kTile - 1) / kTile);
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t r0 = t / tiles_across * kTile;
    const int64_t c0 = t % tiles_across * kTile;
    for (int i = y; i < kTile; i += kStep)
      if (r0 + x < rows && c0 + i < cols)
        tile.element[i][x] = simt::load(from + (c0 + i) * from_col + r0 + x);
    __syncthreads();  // the tile is there for all
    for (int i = y; i < kTile; i += kStep)
      if (r0 + i < rows && c0 + x < cols) simt::store(to + (r0 + i) * to_row + c0 + x, tile.element[x][i]);
    __syncthreads();  // all have left it
  }
}

/// The same in pieces of 16 bytes on both sides: what expert layouts are converted by. A tile has 128 bytes a
/// line, and one element more, so that the eight lines that eight threads gather a piece from begin in
/// different banks.
template <class Bits>
struct PieceTile {
  static constexpr int kPiece = 16 / static_cast<int>(sizeof(Bits));
  static constexpr int kAcross = 8;  // pieces of a line
  static constexpr int kSide = kAcross * kPiece;
  Bits element[kSide][kSide + 1];
};

/// rows and cols are multiples of a piece, as are both strides, and both begin at multiples of 16 bytes.
template <class Bits>
__global__ void __launch_bounds__(kThreads) transpose_pieces(const Bits* from, int64_t from_col, Bits* to,
                                                             int64_t to_row, int64_t rows, int64_t cols) {
  using Tile = PieceTile<Bits>;
  auto& tile = simt::shared<Tile>();
  struct alignas(16) Piece {
    Bits element[Tile::kPiece];
  };
  const int64_t tiles_across = (cols + Tile::kSide - 1) / Tile::kSide;
  const int64_t tiles = tiles_across * ((rows + Tile::kSide - 1) / Tile::kSide);
  for (int64_t t = blockIdx.x; t < tiles; t += gridDim.x) {
    const int64_t r0 = t / tiles_across * Tile::kSide;
    const int64_t c0 = t % tiles_across * Tile::kSide;
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kSide * Tile::kAcross; i += kThreads) {
      const int c = i / Tile::kAcross;
      const int r = i % Tile::kAcross * Tile::kPiece;
      if (r0 + r >= rows || c0 + c >= cols) continue;
      const Piece piece = simt::load(reinterpret_cast<const Piece*>(from + (c0 + c) * from_col + r0 + r));
#pragma unroll
      for (int e = 0; e < Tile::kPiece; ++e) tile.element[c][r + e] = piece.element[e];
    }
    __syncthreads();  // the tile is there for all
    for (int i = static_cast<int>(threadIdx.x); i < Tile::kSide * Tile::kAcross; i += kThreads) {
      const int r = i / Tile::kAcross;
      const int c = i % Tile::kAcross * Tile::kPiece;
      if (r0 + r >= rows || c0 + c >= cols) continue;
      Piece piece;
#pragma unroll
      for (int e = 0; e < Tile::kPiece; ++e) piece.element[e] = tile.element[c + e][r];
      simt::store(reinterpret_cast<Piece*>(to + (r0 + r) * to_row + c0 + c), piece);
    }
    __syncthreads();  // all have left it
  }
}

/// Another dtype at any strides. The dtypes are the same for all threads, so the choice costs less than the
/// memory.
__global__ void __launch_bounds__(kThreads) cast_elements(ConstMatrix from, Matrix to) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < to.rows * to.cols; i += stride) {
    const int64_t r = i / to.cols;
    const int64_t c = i % to.cols;
    const CastValue value = load_value(from.dtype, from.data, r * from.row_stride + c * from.col_stride);
    store_value(to.dtype, to.data, r * to.row_stride + c * to.col_stride, value);
  }
}

dim3 blocks_for(int64_t work) { return cuda::blocks_for(work, kThreads); }

bool aligned(const std::byte* place) { return reinterpret_cast<uintptr_t>(place) % 16 == 0; }

/// Whether transpose_pieces takes it.
template <class Bits>
bool in_pieces(const ConstMatrix& src, const Matrix& dst) {
  constexpr int64_t kPiece = 16 / sizeof(Bits);
  return aligned(src.data) && aligned(dst.data) && dst.rows % kPiece == 0 && dst.cols % kPiece == 0 &&
         src.col_stride % kPiece == 0 && dst.row_stride % kPiece == 0;
}

template <class Bits>
void copy_same_width(simt::Stream stream, const ConstMatrix& src, const Matrix& dst) {
  const auto* const from = reinterpret_cast<const Bits*>(src.data);
  auto* const to = reinterpret_cast<Bits*>(dst.data);
  const bool turned = src.row_stride == 1 && src.col_stride != 1 && dst.col_stride == 1;
  if (turned && in_pieces<Bits>(src, dst)) {
    constexpr int64_t kSide = PieceTile<Bits>::kSide;
    const int64_t tiles = ((dst.rows + kSide - 1) / kSide) * ((dst.cols + kSide - 1) / kSide);
    simt::launch(transpose_pieces<Bits>, blocks_for(tiles * kThreads), dim3(kThreads),
                 sizeof(PieceTile<Bits>), stream, from, src.col_stride, to, dst.row_stride, dst.rows,
                 dst.cols);
  } else if (turned) {
    const int64_t tiles = ((dst.rows + kTile - 1) / kTile) * ((dst.cols + kTile - 1) / kTile);
    simt::launch(transpose<Bits>, blocks_for(tiles * kThreads), dim3(kThreads), sizeof(TransposeTile<Bits>),
                 stream, from, src.col_stride, to, dst.row_stride, dst.rows, dst.cols);
  } else {
    simt::launch(copy_elements<Bits>, blocks_for(dst.rows * dst.cols), dim3(kThreads), 0, stream, from,
                 src.row_stride, src.col_stride, to, dst.row_stride, dst.col_stride, dst.rows, dst.cols);
  }
}

/// Rows after rows without gaps.
bool dense(const ConstMatrix& m) {
  return (m.cols == 1 || m.col_stride == 1) && (m.rows == 1 || m.row_stride == m.cols);
}

}  // namespace

void copy_cuda(void* opaque_stream, const ConstMatrix& src, const Matrix& dst) {
  if (src.rows != dst.rows || src.cols != dst.cols)
    fail(ErrorCode::shape, "cannot copy ", src.rows, " x ", src.cols, " to ", dst.rows, " x ", dst.cols);
  if (dst.rows == 0 || dst.cols == 0) return;
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  if (src.dtype != dst.dtype) {
    simt::launch(cast_elements, blocks_for(dst.rows * dst.cols), dim3(kThreads), 0, stream, src, dst);
    return;
  }
  const int64_t width = size_of(dst.dtype);
  if (dense(src) && dense(dst) && aligned(src.data) && aligned(dst.data)) {
    const int64_t bytes = dst.rows * dst.cols * width;
    simt::launch(copy_bytes, blocks_for(bytes / 16), dim3(kThreads), 0, stream, src.data, dst.data,
                 bytes / 16, static_cast<int>(bytes % 16));
    return;
  }
  if (width == 1) return copy_same_width<uint8_t>(stream, src, dst);
  if (width == 2) return copy_same_width<uint16_t>(stream, src, dst);
  if (width == 4) return copy_same_width<uint32_t>(stream, src, dst);
  copy_same_width<uint64_t>(stream, src, dst);
}

}  // namespace quantaria::ops
