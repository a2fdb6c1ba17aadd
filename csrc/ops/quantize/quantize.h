#pragma once

#include <cstdint>

#include "core/matrix.h"
#include "core/thread_pool.h"

/// Quantization of a weight [out, in] and its inverse, one pair of functions per kind of scheme.
///
/// Every function here
///  - reads the weight where it lies: float32, float16 or bfloat16, any strides, so a slice of a stacked
///    [in, out] expert tensor needs no copy (else ERR_DTYPE);
///  - computes in IEEE float32 and gives the same bits on every instruction set and thread count;
///  - throws ERR_ARGUMENT with row and column of the first (row-major) NaN or infinity of the weight; the
///    outputs are then unspecified;
///  - writes all bytes of its outputs, pad bits as 0. The caller allocates them; sizes are given in bit rows
///    (ops/bitpack/bitpack.h) and elements. A matrix without elements writes its constants (if any) only;
///  - writes dequantized values as one contiguous row-major [out, in] of any float dtype.
namespace quantaria::ops {

/// What a quantization lost: sum (w - dequantized)^2 and sum w^2. The relative error is
/// sqrt(error / weight). Summed in a fixed structure, so its bits do not depend on the machine.
struct ErrorSums {
  double error = 0;
  double weight = 0;
};

enum class Granularity : uint8_t { tensor, row, column, group };

// ---------------------------------------------------------------------------------------------- integers

/// Uniform integers. Group constants run along `in`; the last group may be short.
struct IntScheme {
  int bits = 4;  // 2..8 or 16
  bool symmetric = true;
  bool full_range = false;  // symmetric only: codes down to -2^(bits-1), scale 2 absmax / (2^bits - 1)
  bool mse_search = false;  // shrink factors 1 - k/100, k = 0..79, by sum |error|^2.4
  Granularity granularity = Granularity::group;
  int64_t group_size = 128;            // granularity group only
  DType scale_dtype = DType::float32;  // float32, float16, bfloat16: scales are rounded to it first
};

/// Shape of scales (and zeros): tensor [1, 1], row [out, 1], column [1, in], group [out, ceil(in / size)].
struct ConstantsShape {
  int64_t rows;
  int64_t cols;
};
ConstantsShape constants_shape(const IntScheme& scheme, int64_t out, int64_t in);

/// packed: out bit rows of unsigned codes (symmetric: code + 2^(bits-1)); zeros: null when symmetric.
struct IntStored {
  uint8_t* packed;
  float* scales;
  int32_t* zeros;
};
/// group_index: null, or for each column its group (int32 [in], checked), as act-order GPTQ stores it.
struct ConstIntStored {
  const uint8_t* packed;
  const float* scales;
  const int32_t* zeros;
  const int32_t* group_index = nullptr;
};

/// Throws ERR_ARGUMENT with the first of `in` columns whose group is not one of `groups`.
void check_group_index(const int32_t* index, int64_t in, int64_t groups);

void quantize_int(ThreadPool& pool, const ConstMatrix& w, const IntScheme& scheme, const IntStored& to,
                  ErrorSums* sums = nullptr);
void dequantize_int(ThreadPool& pool, const IntScheme& scheme, const ConstIntStored& from, int64_t out,
                    int64_t in, DType dtype, std::byte* values);

/// LLM.int8 weights: cast to float16, row absmax, code = round(w * (127 / absmax)); an all-zero row has
/// codes 0 and absmax 0. packed: out bit rows of 8-bit code + 128; absmax: float32 [out]. A value beyond
/// float16 counts as infinite. Value: code * absmax / 127.
void quantize_llm_int8(ThreadPool& pool, const ConstMatrix& w, uint8_t* packed, float* absmax,
                       ErrorSums* sums = nullptr);
void dequantize_llm_int8(ThreadPool& pool, const uint8_t* packed, const float* absmax, int64_t out,
                         int64_t in, DType dtype, std::byte* values);

// --------------------------------------------------------------------------------------------- code books

enum class Codebook : uint8_t { nf4, fp4, e3m0, dynamic8 };

/// Flat blocks over the row-major weight; a block may span rows and the last one may be short.
struct CodebookScheme {
  Codebook book = Codebook::nf4;
  int64_t block_size = 64;    // >= 1
  bool double_quant = false;  // 4-bit books only
};

/// blocks = ceil(out * in / block_size).
int64_t block_count(const CodebookScheme& scheme, int64_t out, int64_t in);
/// Absmax values of one nested scale under double quantization.
inline constexpr int64_t kNestedBlock = 256;

/// packed: one bit row of out * in codes. Plain: absmax [blocks], the nested pointers null. Double
/// quantized: absmax null, absmax_codes [blocks], absmax_scales [ceil(blocks / 256)], absmax_offset [1].
struct CodebookStored {
  uint8_t* packed;
  float* absmax;
  uint8_t* absmax_codes;
  float* absmax_scales;
  float* absmax_offset;
};
struct ConstCodebookStored {
  const uint8_t* packed;
  const float* absmax;
  const uint8_t* absmax_codes;
  const float* absmax_scales;
  const float* absmax_offset;
};

void quantize_codebook(ThreadPool& pool, const ConstMatrix& w, const CodebookScheme& scheme,
                       const CodebookStored& to, ErrorSums* sums = nullptr);
void dequantize_codebook(ThreadPool& pool, const CodebookScheme& scheme, const ConstCodebookStored& from,
                         int64_t out, int64_t in, DType dtype, std::byte* values);

/// absmax [blocks] that double quantization's parts decode to: map[code] * scale + offset.
void decode_nested_absmax(const uint8_t* codes, const float* scales, float offset, int64_t blocks,
                          float* absmax);

// ----------------------------------------------------------------------------------------- small floats

enum class Float8 : uint8_t { e4m3, e5m2 };

struct Fp8Scheme {
  Float8 format = Float8::e4m3;
  bool per_row = true;                 // else one scale for the tensor
  DType scale_dtype = DType::float32;  // float32, float16, bfloat16: scales are rounded to it first
};

/// 448 or 57344
float largest_finite(Float8 format);

/// packed: out bit rows of 8-bit patterns; scales: float32 [out] or [1], absmax / 448 or / 57344 (1 where all
/// is zero), rounded to the scheme's dtype, never to 0 nor infinity. Codes are those of w / scale.
void quantize_fp8(ThreadPool& pool, const ConstMatrix& w, const Fp8Scheme& scheme, uint8_t* packed,
                  float* scales, ErrorSums* sums = nullptr);
void dequantize_fp8(ThreadPool& pool, const Fp8Scheme& scheme, const uint8_t* packed, const float* scales,
                    int64_t out, int64_t in, DType dtype, std::byte* values);

enum class MxElement : uint8_t { e4m3, e5m2, e3m2, e2m3, e2m1, int8 };
enum class MxRounding : uint8_t { even, nearest /* half away from zero */, floor /* toward zero */ };

/// OCP Microscaling v1 with blocks of 32 along `in`.
struct MxScheme {
  MxElement element = MxElement::e4m3;
  MxRounding rounding = MxRounding::even;
  bool pre_scale = false;  // a factor per row among 2^(-i/32), i = 0..31, by squared error; ties: least i
};
inline constexpr int64_t kMxBlock = 32;
int mx_element_bits(MxElement element);  // 8, 6 or 4
/// The scale of a block, E8M0; its elements' absmax is finite.
uint8_t mx_scale_of(MxElement element, float absmax);

/// packed: out bit rows of element patterns; scales: E8M0 uint8 [out, ceil(in / 32)]; pre_scale: float32
/// [out], null unless the scheme has it. Value: element * 2^(scale - 127) / pre_scale.
void quantize_mx(ThreadPool& pool, const ConstMatrix& w, const MxScheme& scheme, uint8_t* packed,
                 uint8_t* scales, float* pre_scale, ErrorSums* sums = nullptr);
void dequantize_mx(ThreadPool& pool, const MxScheme& scheme, const uint8_t* packed, const uint8_t* scales,
                   const float* pre_scale, int64_t out, int64_t in, DType dtype, std::byte* values);

}  // namespace quantaria::ops
