#pragma once

#include <cstddef>

#include "core/dtype.h"
#include "ops/quantize/quantize.h"

/// Rows rotated and quantized in one launch: what hadamard and the quantization of its result give, byte for
/// byte, without the rotated rows in memory.
namespace quantaria::ops {

/// x [rows, n] contiguous, float32, float16 or bfloat16; its rotation is rounded to that dtype before it is
/// quantized. `verdict`, 8 bytes that are 0 before the call, refuses rotated elements that are NaN or
/// infinite (cuda/verdict.h); the outputs are then unspecified. `stream` is a simt::Stream.
struct HadamardQuantizeCall {
  void* stream;
  DType dtype;
  int64_t rows;
  int64_t n;  // 1 to kMostRotatedColumns
  float scale;
  const std::byte* x;
  std::byte* verdict;
};
inline constexpr int64_t kMostRotatedColumns = 16384;

/// Scales by row or group, of the extrema: no search.
void hadamard_quantize_int_cuda(const HadamardQuantizeCall& call, const IntScheme& scheme,
                                const IntStored& to);
/// Without factors of rows.
void hadamard_quantize_mx_cuda(const HadamardQuantizeCall& call, const MxScheme& scheme, uint8_t* packed,
                               uint8_t* scales);

}  // namespace quantaria::ops
