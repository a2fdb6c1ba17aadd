#pragma once

#include <cstdint>

#include "core/thread_pool.h"

/// The order in which products read a bit-packed weight: rows (columns of the product) in tiles of sixteen,
/// and in a tile the first word of each row, then the second of each, ...: [tile][words][rows of the tile].
/// The last tile may have fewer rows. One vector then holds the same columns of sixteen rows. A permutation
/// of 32-bit words inside each tile, done in place.
namespace quantaria::ops {

void rows_to_tiles(ThreadPool& pool, uint32_t* words, int64_t rows, int64_t words_per_row);
void tiles_to_rows(ThreadPool& pool, uint32_t* words, int64_t rows, int64_t words_per_row);

}  // namespace quantaria::ops
