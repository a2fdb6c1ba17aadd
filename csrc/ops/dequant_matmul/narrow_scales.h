#pragma once

#include <cstdint>

#include "core/dtype.h"

namespace quantaria::ops {

/// Puts scales into half of their bytes, in place from the front, if all of them are values of float16, or
/// else of bfloat16: those of checkpoints and of schemes with such a scale_dtype are. At groups of 32 every
/// fifth byte that a product of one row reads is a float32 scale's. Returns the dtype that they have then,
/// which is float32 if nothing was done.
DType narrow_scales(float* scales, int64_t count);

/// Brings narrowed scales back.
void widen_scales(float* scales, int64_t count, DType narrowed);

}  // namespace quantaria::ops
