#pragma once

#include <cstdint>

#include "core/dtype.h"
#include "core/thread_pool.h"

namespace quantaria::ops {

/// y = scale * H_n x for each row x of a [rows, n] matrix, n = 2^k * m with m from kBaseOrders
/// (ops/hadamard/base_orders.h); H_n = H_m (x) H_{2^k}, so element i * 2^k + j of a row is element j of block
/// i, with H_{2^k} in natural (Sylvester) order.
/// float32, float16 or bfloat16 (else ERR_DTYPE), x and y contiguous and of the same dtype; x may be y.
/// Accumulated in float32, scaled, then rounded once. The same bits on every instruction set. NaN and
/// infinities stay within their row.
/// Source: Sylvester 1867; base orders after Paley 1933 and Williamson 1944.
void hadamard(ThreadPool& pool, DType dtype, int64_t rows, int64_t n, float scale, const std::byte* x,
              std::byte* y);

/// Throws ERR_SHAPE, naming the nearest sizes there are, unless n has a transform; 0 has, of nothing.
void check_hadamard_size(int64_t n);

}  // namespace quantaria::ops
