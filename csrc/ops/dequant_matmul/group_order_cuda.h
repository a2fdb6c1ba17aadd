#pragma once

#include "core/matrix.h"
#include "ops/dequant_matmul/coded_matrix.h"

/// Columns in the order of their groups (group_order.h), in device memory. `stream` is a simt::Stream.
namespace quantaria::ops {

struct ProductTiles;

/// The codes of columns[k] of `from` as column k of each row, 0 where that is -1: bit rows of `count` codes,
/// a multiple of 32.
void order_codes_cuda(void* stream, const CodedMatrix& from, const int32_t* columns, int64_t count,
                      uint32_t* words);

/// to[r][k] = x[r][columns[k]], 0 where that is -1; x of 16 bits, to [x.rows, count] contiguous.
void order_activations_cuda(void* stream, const ConstMatrix& x, const int32_t* columns, int64_t count,
                            uint16_t* to);

/// The same of a grouped product's rows: row r of group g is the row of x that `tiles` has it read, in the
/// order columns[g * step]; that of a group without columns (null) is left as it is. to [rows, count].
void order_group_activations_cuda(void* stream, const ConstMatrix& x, const ProductTiles& tiles,
                                  const int32_t* const* columns, int step, int64_t count, uint16_t* to);

}  // namespace quantaria::ops
