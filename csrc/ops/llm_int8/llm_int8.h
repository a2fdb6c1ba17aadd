#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix.h"
#include "core/thread_pool.h"

/// The activation side of LLM.int8 (arXiv 2208.07339): columns that hold a large value are taken out, the
/// rest becomes int8 with one scale per row.
///
/// Every function here reads x [rows, cols] where it lies: float32, float16 or bfloat16, any strides (else
/// ERR_DTYPE); computes in IEEE float32; and gives the same bits on every instruction set and thread count.
/// A value is large if |x| >= threshold, in float32; a threshold of 0 means that none is. NaN is not large.
namespace quantaria::ops {

/// mask[c] = 1 if column c holds a large value, else 0.
void outlier_mask(ThreadPool& pool, const ConstMatrix& x, float threshold, uint8_t* mask);

/// The columns whose mask is set, rising.
std::vector<int64_t> outlier_columns(const uint8_t* mask, int64_t cols);

/// absmax [rows]: the largest magnitude of the row's values that are not large, those in outlier columns
/// included; NaN if one of those is NaN. 0 without any. codes [rows, cols], row r at codes + r * row_bytes:
/// round(x * (127 / absmax)), to nearest even, in -127..127; 0 in outlier columns, where absmax is 0 or not
/// finite, and for NaN. `mask` null: no outlier columns. A row with NaN, or with infinity under threshold 0,
/// so keeps it in its absmax: absmax * 0 is NaN.
void quantize_activations(ThreadPool& pool, const ConstMatrix& x, float threshold, const uint8_t* mask,
                          float* absmax, int8_t* codes, int64_t row_bytes);

/// Columns `columns` of x as a row-major matrix [rows, columns.size()] of x's dtype.
void gather_columns(ThreadPool& pool, const ConstMatrix& x, const std::vector<int64_t>& columns,
                    std::byte* to);

}  // namespace quantaria::ops
