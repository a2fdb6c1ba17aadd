#pragma once

#include "core/matrix.h"
#include "ops/dequant_matmul/coded_matrix.h"

namespace quantaria::ops {

/// The values of a weight in device memory, [out, in] row-major of any float dtype, as the CPU's
/// dequantization writes them, bit for bit. `stream` is a simt::Stream.
void dequantize_cuda(void* stream, const DeviceWeight& weight, DType dtype, std::byte* values);

/// y = x W^T + bias with a quantized weight in device memory, decoded on the way. x [m, in] float32, float16
/// or bfloat16, any strides; bias [1, out] of any float dtype, or null; y [m, out] of any float dtype and
/// strides. In float32 by fused multiply-add, the terms of a sum in order.
void dequant_matmul_float32_cuda(void* stream, const ConstMatrix& x, const DeviceWeight& weight,
                                 const ConstMatrix* bias, const Matrix& y);

}  // namespace quantaria::ops
