#pragma once

#include "core/matrix.h"
#include "ops/quantize/quantize.h"

/// Quantization of a weight in device memory, one function per kind of scheme. What each writes is, byte for
/// byte, what its namesake of quantize.h writes; w is float32, float16 or bfloat16 with any strides, its
/// elements aligned.
///
/// Nobody waits for a kernel here. Whether the weight could be quantized at all stands in the first 8 bytes
/// of `workspace` once the stream has come past the call: 0, which the caller has put there before, or the
/// complement of the row-major index of the first element that is NaN, infinite or (LLM.int8) beyond float16.
/// The outputs are then unspecified.
///
/// relative_error [1]: the Frobenius norm of w - dequantized over that of w, from float64 sums in an order
/// that depends on the shape alone. `stream` is a simt::Stream; `workspace` has as many bytes of device
/// memory as the function's *_workspace says.
namespace quantaria::ops {

struct QuantizeCall {
  void* stream;
  ConstMatrix w;
  float* relative_error;
  std::byte* workspace;
};

void quantize_int_cuda(const QuantizeCall& call, const IntScheme& scheme, const IntStored& to);
void quantize_codebook_cuda(const QuantizeCall& call, const CodebookScheme& scheme, const CodebookStored& to);
void quantize_fp8_cuda(const QuantizeCall& call, const Fp8Scheme& scheme, uint8_t* packed, float* scales);
void quantize_mx_cuda(const QuantizeCall& call, const MxScheme& scheme, uint8_t* packed, uint8_t* scales,
                      float* pre_scale);
void quantize_llm_int8_cuda(const QuantizeCall& call, uint8_t* packed, float* absmax);

int64_t quantize_int_workspace(const IntScheme& scheme, int64_t out, int64_t in);
int64_t quantize_codebook_workspace(const CodebookScheme& scheme, int64_t out, int64_t in);
/// Of the other kinds.
int64_t quantize_rows_workspace(int64_t out, int64_t in);

/// absmax [blocks] that double quantization's parts decode to (decode_nested_absmax).
void decode_nested_absmax_cuda(void* stream, const uint8_t* codes, const float* scales, const float* offset,
                               int64_t blocks, float* absmax);

/// All of them, as a device hands them out (cuda/kernels.h).
struct QuantizeLaunchers {
  decltype(&quantize_int_cuda) integers;
  decltype(&quantize_codebook_cuda) codebook;
  decltype(&quantize_fp8_cuda) fp8;
  decltype(&quantize_mx_cuda) mx;
  decltype(&quantize_llm_int8_cuda) llm_int8;
  decltype(&quantize_int_workspace) int_workspace;
  decltype(&quantize_codebook_workspace) codebook_workspace;
  decltype(&quantize_rows_workspace) rows_workspace;
  decltype(&decode_nested_absmax_cuda) nested_absmax;
};
inline constexpr QuantizeLaunchers kQuantizeLaunchers{
    quantize_int_cuda,        quantize_codebook_cuda, quantize_fp8_cuda,           quantize_mx_cuda,
    quantize_llm_int8_cuda,   quantize_int_workspace, quantize_codebook_workspace, quantize_rows_workspace,
    decode_nested_absmax_cuda};

}  // namespace quantaria::ops
