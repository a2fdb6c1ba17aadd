#pragma once

#include "core/matrix.h"
#include "core/thread_pool.h"

namespace quantaria::ops {

/// dst(r, c) = src(r, c), cast to dst's dtype.
///
/// src and dst have the same rows and cols (else ERR_SHAPE); strides are free, but no two elements of
/// dst may overlap, nor dst and src. Same dtype: bytes are copied as they are. Otherwise
///  - to a float: rounded to nearest even from the source's exact value (through float32 for integers
///    beyond 24 bits: rounded once to float32 first); float8 saturates, infinities too; NaN stays NaN;
///  - to an integer: rounded to nearest even, clamped to the type's range, NaN gives 0;
///  - to bool: value != 0 (NaN is true); from bool: 0 or 1.
/// Runs in parallel over strips of rows; a transposing copy is blocked for cache and registers.
void copy_cast(ThreadPool& pool, const ConstMatrix& src, const Matrix& dst);

}  // namespace quantaria::ops
