#pragma once

#include "core/matrix.h"

namespace quantaria::ops {

/// c = a b + bias in device memory, on tensor cores. a [m, k] with unit column stride and b [k, n] with a
/// unit stride along either: both float16 or both bfloat16 (else ERR_UNSUPPORTED). c [m, n]: any float dtype,
/// any strides. bias [1, n] of any float dtype, or null. Products exact, sums in float32 in an order that
/// depends on k alone, rounded once. `stream` is a simt::Stream.
void gemm_cuda(void* stream, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias,
               const Matrix& c);

}  // namespace quantaria::ops
