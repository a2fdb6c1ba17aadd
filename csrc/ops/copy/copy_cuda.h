#pragma once

#include "core/matrix.h"

namespace quantaria::ops {

/// The contract of copy_cast (ops/copy/copy.h), in device memory: bit for bit what it gives. `stream` is a
/// simt::Stream.
void copy_cuda(void* stream, const ConstMatrix& src, const Matrix& dst);

}  // namespace quantaria::ops
