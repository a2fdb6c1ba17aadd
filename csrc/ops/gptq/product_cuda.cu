#include "core/error.h"
#include "ops/bitpack/bitpack.h"
#include "ops/gptq/run_cuda.h"
#include "ops/gptq/tile_product.cuh"
#include "simt/simt.h"

// Between two blocks of columns: what the errors of all columns before one add to it; and at the end, codes
// to bits.
namespace quantaria::ops {
namespace {

constexpr int kThreads = kProductThreads;
constexpr int64_t kAcross = kGptqBlock / kProductTile;

/// Block ((split, column tile, row tile), p).
__global__ void __launch_bounds__(kThreads)
    multiply(GptqRun run, BlockRange block, int64_t depth, int64_t splits) {
  TileProduct product(simt::shared<ProductSlabs>());
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const int64_t row_tiles = (run.rows + kProductTile - 1) / kProductTile;
  const int64_t row0 = blockIdx.x % row_tiles * kProductTile;
  const int64_t col0 = blockIdx.x / row_tiles % kAcross * kProductTile;
  const int64_t split = blockIdx.x / row_tiles / kAcross;
  const int64_t rows_before = blockIdx.y * run.rows;
  const float* const factor = run.hessian + blockIdx.y * run.in * run.in + block.first;
  const auto from_factor = [&](int64_t k, int j) {
    return col0 + j < block.cols ? simt::load(factor + k * run.in + col0 + j) : 0.0f;
  };
  // Whole runs, so that the cuts do not change what is summed together.
  const int64_t runs = (depth + kProductRun - 1) / kProductRun;
  const int64_t begin = runs * split / splits * kProductRun;
  const int64_t end = runs * (split + 1) / splits * kProductRun;
  const float* const values = run.values + rows_before * run.in;
  product.add<Along::k, Along::tile>(
      begin, end < depth ? end : depth,
      [&](int i, int64_t k) {
        return row0 + i < run.rows ? simt::load(values + (row0 + i) * run.in + k) : 0.0f;
      },
      from_factor);
  if (split == splits - 1 && depth < block.first) {
    const float* const solved = run.solved + rows_before * run.in;
    product.add<Along::k, Along::tile>(
        depth, block.first,
        [&](int i, int64_t k) {
          return row0 + i < run.rows ? -simt::load(solved + (row0 + i) * run.in + k) : 0.0f;
        },
        from_factor);
  }
  float* const to = run.product + (blockIdx.y * splits + split) * run.rows * kGptqBlock;
  product.for_each([&](int i, int j, float sum) {
    if (row0 + i < run.rows) simt::store(to + (row0 + i) * kGptqBlock + col0 + j, sum);
  });
}

/// Block ((column tile, row tile), p).
__global__ void __launch_bounds__(kThreads)
    solve_block(GptqRun run, BlockCut cut, int64_t index, int64_t splits) {
  TileProduct product(simt::shared<ProductSlabs>());
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const BlockRange block = cut.block(index);
  const int64_t row_tiles = (run.rows + kProductTile - 1) / kProductTile;
  const int64_t row0 = blockIdx.x % row_tiles * kProductTile;
  const int64_t col0 = blockIdx.x / row_tiles * kProductTile;
  const float* const parts = run.product + blockIdx.y * splits * run.rows * kGptqBlock;
  const float* const upper = run.upper + (blockIdx.y * cut.blocks() + index) * kUpperFloats;
  product.add<Along::k, Along::tile>(
      0, block.cols,
      [&](int i, int64_t k) {
        if (row0 + i >= run.rows) return 0.0f;
        float sum = 0;
        for (int64_t split = 0; split < splits; ++split)
          sum += simt::load(parts + (split * run.rows + row0 + i) * kGptqBlock + k);
        return sum;
      },
      [&](int64_t k, int j) {
        const int64_t col = col0 + j;
        return k <= col ? simt::load(upper + upper_place(static_cast<int>(k), static_cast<int>(col))) : 0.0f;
      });
  float* const to = run.solved + blockIdx.y * run.rows * run.in + block.first;
  product.for_each([&](int i, int j, float sum) {
    if (row0 + i < run.rows && col0 + j < block.cols) simt::store(to + (row0 + i) * run.in + col0 + j, sum);
  });
}

/// Block (words, p): a thread makes a word of codes, those on its borders once more than needed.
__global__ void __launch_bounds__(kThreads)
    pack_bit_rows(GptqRun run, const __grid_constant__ PerProblem<uint8_t*> packed, int bits, int64_t rows,
                  int64_t cols) {
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const int64_t row_words = (cols * bits + 31) / 32;
  const int64_t place = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (place >= rows * row_words) return;
  const int64_t row = place / row_words;
  const int64_t bit = place % row_words * 32;
  const uint8_t* const codes = run.codes + (blockIdx.y * rows + row) * cols;
  int64_t col = bit / bits;
  uint32_t word = 0;
  for (int at = static_cast<int>(col * bits - bit); at < 32 && col < cols; ++col, at += bits) {
    const uint32_t code = simt::load(codes + col);
    word |= at >= 0 ? code << at : code >> -at;
  }
  simt::store(reinterpret_cast<uint32_t*>(packed.of[blockIdx.y]) + place, word);
}

__global__ void __launch_bounds__(kThreads)
    index(GptqRun run, const __grid_constant__ PerProblem<int32_t*> group_index, int64_t group) {
  if (simt::load(&run.state[blockIdx.y].stopped)) return;
  const int64_t position = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (position >= run.in) return;
  const int32_t column = simt::load(run.order + blockIdx.y * run.in + position);
  simt::store(group_index.of[blockIdx.y] + column, static_cast<int32_t>(position / group));
}

}  // namespace

int64_t product_splits(int64_t rows) {
  constexpr int64_t kEnough = 216;  // two a multiprocessor of an A100
  const int64_t tiles = (rows + kProductTile - 1) / kProductTile * kAcross;
  return tiles >= kEnough ? 1 : kEnough / tiles < 8 ? kEnough / tiles : 8;
}

void multiply_factor(void* stream, const GptqRun& run, const BlockRange& block, int64_t depth) {
  const int64_t splits = product_splits(run.rows);
  const int64_t tiles = (run.rows + kProductTile - 1) / kProductTile * kAcross;
  simt::launch(multiply, dim3(blocks_of(tiles * splits), static_cast<unsigned>(run.problems)), dim3(kThreads),
               sizeof(ProductSlabs), static_cast<simt::Stream>(stream), run, block, depth, splits);
}

void apply_inverse(void* stream, const GptqRun& run, const BlockCut& cut, int64_t block) {
  const int64_t tiles = (run.rows + kProductTile - 1) / kProductTile * kAcross;
  simt::launch(solve_block, dim3(blocks_of(tiles), static_cast<unsigned>(run.problems)), dim3(kThreads),
               sizeof(ProductSlabs), static_cast<simt::Stream>(stream), run, cut, block,
               product_splits(run.rows));
}

void index_groups(void* stream, const GptqRun& run, const PerProblem<int32_t*>& group_index, int64_t group) {
  simt::launch(index,
               dim3(blocks_of((run.in + kThreads - 1) / kThreads), static_cast<unsigned>(run.problems)),
               dim3(kThreads), 0, static_cast<simt::Stream>(stream), run, group_index, group);
}

void pack_codes(void* stream, const GptqRun& run, const PerProblem<uint8_t*>& packed, int bits, bool as_one) {
  const int64_t rows = as_one ? 1 : run.rows;
  const int64_t cols = as_one ? run.rows * run.in : run.in;
  const int64_t words = rows * packed_row_bytes(cols, bits) / 4;
  simt::launch(pack_bit_rows,
               dim3(blocks_of((words + kThreads - 1) / kThreads), static_cast<unsigned>(run.problems)),
               dim3(kThreads), 0, static_cast<simt::Stream>(stream), run, packed, bits, rows, cols);
}

}  // namespace quantaria::ops
