#pragma once

#include <functional>
#include <memory>

#include "ops/gemm/factor.h"
#include "ops/quantize/quantize.h"

/// Products with quantized weights: y = x W^T, where W [out, in] is decoded on the way and never written to
/// memory as a whole. One function per kind of scheme says how its stored form is read.
namespace quantaria::ops {

/// A stored weight as right factor.
struct WeightProducts {
  /// Whether the bit rows must lie in tiles (weight_tiles.h) when a factor is used, else one after the other;
  /// and with them scales (absmax) and zeros [rows, groups], unless groups is 0.
  bool tiled = false;
  int64_t rows = 0;
  int64_t words_per_row = 0;
  int64_t groups = 0;
  /// ERR_UNSUPPORTED for int8 products of a weight whose codes are no integers, or whose groups do not fit
  /// words. The factor reads the stored form, which must outlive it. Scales in tiles may have been narrowed
  /// (narrow_scales.h) to `scale_dtype`.
  std::function<std::unique_ptr<Factor>(Operand, DType scale_dtype)> factor;
};

/// Why a weight of integers has no int8 products; null if it has. `indexed`: columns name their groups.
const char* int8_obstacle(const IntScheme& scheme, bool indexed, int64_t in);

/// Why a weight of LLM.int8 has no integer products; null if it has.
const char* llm_int8_obstacle(int64_t in);

WeightProducts int_products(const IntScheme& scheme, const ConstIntStored& stored, int64_t out, int64_t in);
WeightProducts codebook_products(const CodebookScheme& scheme, const ConstCodebookStored& stored, int64_t out,
                                 int64_t in);
WeightProducts fp8_products(const Fp8Scheme& scheme, const uint8_t* packed, const float* scales, int64_t out,
                            int64_t in);
WeightProducts mx_products(const MxScheme& scheme, const uint8_t* packed, const uint8_t* scales,
                           const float* pre_scale, int64_t out, int64_t in);

/// packed: bit rows of code + 128; absmax [out]; value code * absmax / 127.
WeightProducts llm_int8_products(const uint8_t* packed, const float* absmax, int64_t out, int64_t in);

/// y = x W^T + bias, rounded once to y's dtype. x [rows, in] float32, float16 or bfloat16; bias [out] of any
/// float dtype, contiguous, or null; y [rows, out] of any float dtype, any row stride, unit column stride.
void linear(ThreadPool& pool, const ConstMatrix& x, const Factor& weight, const ConstMatrix* bias,
            const Matrix& y);

/// The product of LLM.int8 (arXiv 2208.07339), of a weight in tiles as llm_int8_products takes it. Columns of
/// x that hold a magnitude of at least `threshold` (0: none) are multiplied in float32 by the dequantized
/// weight; the rest is int8 with a scale a row (ops/llm_int8/llm_int8.h), exact in integers. One rounding to
/// y's dtype at the end.
void llm_int8_linear(ThreadPool& pool, const ConstMatrix& x, float threshold, const uint8_t* packed,
                     const float* absmax, const ConstMatrix* bias, const Matrix& y);

}  // namespace quantaria::ops
