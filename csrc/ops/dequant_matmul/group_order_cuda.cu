#include "ops/dequant_matmul/group_order_cuda.h"

#include "core/error.h"
#include "cuda/grid.h"
#include "ops/dequant_matmul/coded_value.cuh"
#include "ops/gemm/product_tiles.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;

/// A thread for each word: of codes that lie across its ends it writes its own bits.
__global__ void __launch_bounds__(kThreads)
    order_codes(const __grid_constant__ CodedMatrix from, const int32_t* columns, int64_t count,
                uint32_t* words) {
  const int64_t row_words = count * from.bits / 32;
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < from.out * row_words; i += stride) {
    const int64_t row = i / row_words;
    const int64_t bit = i % row_words * 32;
    uint32_t word = 0;
    for (int64_t k = bit / from.bits; k * from.bits < bit + 32; ++k) {
      const int32_t column = simt::load(columns + k);
      if (column < 0) continue;
      const uint32_t code = code_at(from, from.bits, row * from.row_bits + int64_t{column} * from.bits);
      const auto shift = static_cast<int>(k * from.bits - bit);
      word |= shift < 0 ? code >> -shift : code << shift;
    }
    simt::store(words + i, word);
  }
}

/// Rows of a tile of a plain product: enough blocks for few rows, and a column looked up once for many.
constexpr int kTileRows = 16;

/// Which columns of x each row of `to` has.
struct LeftColumns {
  const int32_t* all;              // of every row, or null:
  const int32_t* const* of_group;  // of those of group g at of_group[g * step], or none
  int step;
};

/// A thread for a column of a tile of rows.
__global__ void __launch_bounds__(kThreads)
    order_activations(ConstMatrix x, const __grid_constant__ ProductTiles tiles, LeftColumns left,
                      int64_t count, uint16_t* to) {
  const int64_t k = blockIdx.x / tiles.row_tiles * kThreads + threadIdx.x;
  const int64_t row_tile = blockIdx.x % tiles.row_tiles;
  RowTile tile{0, 0, 0};
  int64_t first = row_tile * kTileRows;
  int64_t end = first + kTileRows < x.rows ? first + kTileRows : x.rows;
  if (tiles.tiles) {
    tile = simt::load(tiles.tiles + row_tile);
    first = tile.first;
    end = tile.end;
  }
  if (tile.group < 0 || k >= count) return;
  const int32_t* const columns =
      left.all ? left.all : simt::load(left.of_group + int64_t{tile.group} * left.step);
  if (!columns) return;
  const int64_t column = simt::load(columns + k);
  const auto* const values = reinterpret_cast<const uint16_t*>(x.data);
  for (int64_t r = first; r < end; ++r) {
    const int64_t row = left_row_of(tiles, r, end, x.rows);
    const bool there = row >= 0 && column >= 0;
    const int64_t place = row * x.row_stride + column * x.col_stride;
    simt::store(to + r * count + k, there ? simt::load(values + place) : uint16_t{0});
  }
}

void launch_order(void* stream, const ConstMatrix& x, const ProductTiles& tiles, const LeftColumns& left,
                  int64_t count, uint16_t* to) {
  const int64_t blocks = tiles.row_tiles * ((count + kThreads - 1) / kThreads);
  if (blocks > 0x7fffffff)
    fail(ErrorCode::unsupported, "activations of ", blocks, " blocks, at most 2^31 - 1 expected");
  if (blocks > 0)
    simt::launch(order_activations, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), 0,
                 static_cast<simt::Stream>(stream), x, tiles, left, count, to);
}

}  // namespace

void order_codes_cuda(void* stream, const CodedMatrix& from, const int32_t* columns, int64_t count,
                      uint32_t* words) {
  const int64_t work = from.out * (count * from.bits / 32);
  if (work > 0)
    simt::launch(order_codes, cuda::blocks_for(work, kThreads), dim3(kThreads), 0,
                 static_cast<simt::Stream>(stream), from, columns, count, words);
}

void order_activations_cuda(void* stream, const ConstMatrix& x, const int32_t* columns, int64_t count,
                            uint16_t* to) {
  launch_order(stream, x, tiles_of_rows(x.rows, kTileRows), {columns, nullptr, 0}, count, to);
}

void order_group_activations_cuda(void* stream, const ConstMatrix& x, const ProductTiles& tiles,
                                  const int32_t* const* columns, int step, int64_t count, uint16_t* to) {
  launch_order(stream, x, tiles, {nullptr, columns, step}, count, to);
}

}  // namespace quantaria::ops
