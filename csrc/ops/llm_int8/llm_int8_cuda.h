#pragma once

#include "core/matrix.h"
#include "ops/dequant_matmul/coded_matrix.h"

/// LLM.int8 (arXiv 2208.07339) in device memory. `stream` is a simt::Stream; nobody waits for a kernel, and
/// which columns hold outliers is never looked at by the host. x is float32, float16 or bfloat16 of any
/// strides; a threshold of 0 means that no value is large.
namespace quantaria::ops {

/// The mask of outlier_mask (llm_int8.h), a bit a column, the first in the lowest: words
/// [ceil(cols / 32)].
void outlier_words_cuda(void* stream, const ConstMatrix& x, float threshold, uint32_t* words);

/// quantize_activations (llm_int8.h) by that mask, the same bits: absmax [rows], codes [rows, cols].
void quantize_activations_cuda(void* stream, const ConstMatrix& x, float threshold, const uint32_t* words,
                               float* absmax, int8_t* codes);

/// y = x W^T + bias by the contract of llm_int8_linear (ops/dequant_matmul/dequant_matmul.h), in three
/// launches: rows are quantized and large values marked; outlier columns are listed, and their codes cleared;
/// the integer product on tensor cores, with the dequantization, the outlier columns and the bias before the
/// one rounding. Without outliers the bits are the CPU's. Outlier columns of 16-bit x are multiplied with the
/// codes, whose scale comes after, so sums of bfloat16 values beyond 2^119 overflow.
/// workspace: llm_int8_workspace bytes of device memory, which the call may use until the stream has come
/// past it; its first llm_int8_zeroed bytes are 0 before the call.
void llm_int8_matmul_cuda(void* stream, const ConstMatrix& x, float threshold, const DeviceWeight& weight,
                          const ConstMatrix* bias, const Matrix& y, std::byte* workspace);
int64_t llm_int8_workspace(int64_t rows, const CodedMatrix& weight);
/// How many bytes of the workspace, from its start, the caller has to zero.
int64_t llm_int8_zeroed(const CodedMatrix& weight);

struct LlmInt8Launchers {
  decltype(&outlier_words_cuda) outlier_words;
  decltype(&quantize_activations_cuda) quantize_activations;
  decltype(&llm_int8_matmul_cuda) matmul;
  decltype(&llm_int8_workspace) workspace;
  decltype(&llm_int8_zeroed) zeroed;
};
inline constexpr LlmInt8Launchers kLlmInt8Launchers{
    outlier_words_cuda, quantize_activations_cuda, llm_int8_matmul_cuda, llm_int8_workspace, llm_int8_zeroed};

}  // namespace quantaria::ops
