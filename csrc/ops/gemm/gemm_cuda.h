#pragma once

#include "core/matrix.h"

namespace quantaria::ops {

/// c = a b + bias in device memory. a [m, k] and b [k, n] float32, float16 or bfloat16, any strides; c
/// [m, n] any float dtype, any strides; bias [1, n] of any float dtype, or null. `stream` is a simt::Stream.
/// Products are exact and sums in float32, in an order that depends on the shape alone, rounded once to c's
/// dtype: on tensor cores where both factors have one 16-bit dtype and unit strides (a along k, b along
/// either), else by gemm_float32_cuda.
///
/// workspace: gemm_workspace bytes of device memory, aligned to 16, which the call may use until the stream
/// has come past it. arrivals: the device's counters (cuda/arrivals.h).
void gemm_cuda(void* stream, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias,
               const Matrix& c, std::byte* workspace, unsigned* arrivals);
int64_t gemm_workspace(const ConstMatrix& a, const ConstMatrix& b);

/// The same by fused multiply-add in float32, term after term.
void gemm_float32_cuda(void* stream, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias,
                       const Matrix& c);

}  // namespace quantaria::ops
