#pragma once

#include <functional>
#include <memory>

#include "ops/gemm/factor.h"

namespace quantaria::ops {

/// Dequantizes rows [first, first + rows) of a weight to contiguous float32 [rows, in] at `values`; returns
/// it.
using ReadStrip = std::function<const float*(int64_t first, int64_t rows, float* values)>;

/// The transpose of a weight [out, in] that can only be decoded row by row (columns with a group of their
/// own, groups that end inside a word): a panel's rows are dequantized, and then multiplied like a dense
/// matrix.
std::unique_ptr<Factor> make_strip_factor(int64_t out, int64_t in, ReadStrip read, bool bfloat16_products);

}  // namespace quantaria::ops
