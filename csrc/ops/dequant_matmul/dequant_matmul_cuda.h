#pragma once

#include "core/matrix.h"
#include "ops/dequant_matmul/coded_matrix.h"

namespace quantaria::ops {

/// The values of a weight in device memory, [out, in] row-major of any float dtype, as the CPU's
/// dequantization writes them, bit for bit. `stream` is a simt::Stream.
void dequantize_cuda(void* stream, const DeviceWeight& weight, DType dtype, std::byte* values);

/// y = x W^T + bias with a quantized weight in device memory, decoded on the way. x [m, in] float32, float16
/// or bfloat16, any strides; bias [1, out] of any float dtype, or null; y [m, out] of any float dtype and
/// strides. Sums in float32, in an order that depends on the shape alone; one rounding to y's dtype.
///
/// On tensor cores for 16-bit x and weights of whole words a row with scales for whole runs of 32 columns:
/// integers of 2, 3, 4 and 8 bits, whose products are exact, unless some zero points lie far from the codes
/// (CodedMatrix::far_zeros), and, if `rounded` allows it, code books and small floats, whose table is rounded
/// to x's dtype.
/// Scales stay in float32 and multiply a group's sum, which overflows for bfloat16 x beyond 2^100. Everything
/// else by dequant_matmul_float32_cuda.
///
/// A weight with left_columns is for tensor cores alone: its activations' columns are brought into its order
/// first.
///
/// workspace: dequant_matmul_workspace bytes of device memory, aligned to 16, which the call may use until
/// the stream has come past it. arrivals: the device's counters (cuda/arrivals.h).
void dequant_matmul_cuda(void* stream, const ConstMatrix& x, const DeviceWeight& weight,
                         const ConstMatrix* bias, const Matrix& y, bool rounded, std::byte* workspace,
                         unsigned* arrivals);
int64_t dequant_matmul_workspace(int64_t rows, DType x, const DeviceWeight& weight, bool rounded);

/// Whether dequant_matmul_cuda takes tensor cores, given unit strides.
bool on_tensor_cores(DType x, const CodedMatrix& weight, bool rounded);

/// y = x W^T + bias with a weight of integers of at most 8 bits, x quantized to int8 over each of its groups
/// (PackKernels::encode_int8): sums of a group are exact integers on tensor cores, those of groups are added
/// up in float32 in their order, the bits of the CPU's from AVX2 on. What a weight needs for it is
/// int8_obstacle's (dequant_matmul.h). workspace: int8_matmul_workspace bytes of device memory, as above.
void int8_matmul_cuda(void* stream, const ConstMatrix& x, const DeviceWeight& weight, const ConstMatrix* bias,
                      const Matrix& y, std::byte* workspace);
int64_t int8_matmul_workspace(int64_t rows, const CodedMatrix& weight);

struct Int8Launchers {
  decltype(&int8_matmul_cuda) matmul;
  decltype(&int8_matmul_workspace) workspace;
};
inline constexpr Int8Launchers kInt8Launchers{int8_matmul_cuda, int8_matmul_workspace};

/// The same product by fused multiply-add, the terms of a sum in order.
void dequant_matmul_float32_cuda(void* stream, const ConstMatrix& x, const DeviceWeight& weight,
                                 const ConstMatrix* bias, const Matrix& y);

}  // namespace quantaria::ops
