#include "ops/dequant_matmul/weight_tiles.h"

#include <algorithm>
#include <cstring>

#include "ops/dequant_matmul/kernels.h"
#include "ops/gemm/pack.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// body(tile's words, a copy of them, rows of the tile)
template <class Body>
void for_each_tile(ThreadPool& pool, uint32_t* words, int64_t rows, int64_t words_per_row, const Body& body) {
  const int64_t tiles = words_per_row == 0 ? 0 : (rows + kTileRows - 1) / kTileRows;
  pool.parallel_for(tiles, [&](int64_t tile) {
    const int64_t count = std::min<int64_t>(kTileRows, rows - tile * kTileRows);
    uint32_t* const to = words + tile * kTileRows * words_per_row;
    auto* const copy = thread_buffer<uint32_t>(Slot::strip, count * words_per_row);
    std::memcpy(copy, to, static_cast<size_t>(count * words_per_row * 4));
    body(to, copy, count);
  });
}

}  // namespace

void rows_to_tiles(ThreadPool& pool, uint32_t* words, int64_t rows, int64_t words_per_row) {
  for_each_tile(pool, words, rows, words_per_row, [&](uint32_t* to, const uint32_t* from, int64_t count) {
    const uint32_t* row[kTileRows];
    for (int64_t r = 0; r < count; ++r) row[r] = from + r * words_per_row;
    pack_kernels().interleave(row, static_cast<int>(count), words_per_row, to, count);
  });
}

void tiles_to_rows(ThreadPool& pool, uint32_t* words, int64_t rows, int64_t words_per_row) {
  for_each_tile(pool, words, rows, words_per_row, [&](uint32_t* to, const uint32_t* from, int64_t count) {
    uint32_t* row[kTileRows];
    for (int64_t r = 0; r < count; ++r) row[r] = to + r * words_per_row;
    if (count == kTileRows) return pack_kernels().separate(from, kTileRows, words_per_row, row);
    for (int64_t w = 0; w < words_per_row; ++w)
      for (int64_t r = 0; r < count; ++r) row[r][w] = from[w * count + r];
  });
}

}  // namespace quantaria::ops
