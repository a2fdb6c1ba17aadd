#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace quantaria::ops {

/// to[i] = from[i], n contiguous elements, cast as copy_cast documents (ops/copy/copy.h).
void convert_row(DType from_dtype, const std::byte* from, DType to_dtype, std::byte* to, int64_t n);

}  // namespace quantaria::ops
