#pragma once

#include <cstdint>

#include "numerics/code_books.h"
#include "ops/quantize/grid_rule.h"

/// The row kernels of quantization, compiled once per instruction set (*_isa.cc). A row is a run of
/// contiguous float32; codes are one byte each (uint16 for 16-bit integers) until bitpack joins them.
namespace quantaria::ops {

/// A kernel may write this many codes past the last one.
inline constexpr int64_t kCodeSlack = 64;

/// Sums of (w - dequantized)^2 and w^2 in sixteen lanes: element j of a group goes to lane j % 16.
struct LaneSums {
  alignas(64) float error[16] = {};
  alignas(64) float weight[16] = {};
};

/// Between the stored 16-bit types, float8 and rows. The float8 directions are value casts.
struct RowKernels {
  void (*from_half)(const uint16_t* from, int64_t n, float* to);
  void (*from_bfloat16)(const uint16_t* from, int64_t n, float* to);
  void (*to_half)(const float* from, int64_t n, uint16_t* to);
  void (*to_bfloat16)(const float* from, int64_t n, uint16_t* to);
  void (*to_e4m3)(const float* from, int64_t n, uint8_t* to);
  void (*to_e5m2)(const float* from, int64_t n, uint8_t* to);
  /// Adds (w - q)^2 and w^2.
  void (*add_errors)(const float* w, const float* q, int64_t n, LaneSums& sums);
};

/// Extrema of each group of `group` elements, the last one short. They return the largest magnitude's
/// bits over the row: >= 0x7f800000 iff it holds a NaN or infinity (the extrema are then meaningless).
struct RangeKernels {
  uint32_t (*absmax)(const float* row, int64_t n, int64_t group, float* absmax);
  uint32_t (*range)(const float* row, int64_t n, int64_t group, float* low, float* high);
};

/// Grids of n groups, by the dtype that scales are rounded to: float32, float16, bfloat16.
struct GridKernels {
  void (*symmetric[3])(const GridRule& rule, const float* absmax, int64_t n, float* scales);
  void (*affine[3])(const GridRule& rule, const float* low, const float* high, int64_t n, float* scales,
                    float* zeros);
};

/// Codes low..high around zero, stored plus `offset`: code = clamp(round(w / scale) + zero, low, high).
struct IntLimits {
  float low;
  float high;
  int32_t offset;
};

struct IntKernels {
  /// One scale, and zero (null: all 0), per group of `group` elements; `sums` may be null.
  void (*encode8)(const float* row, int64_t n, int64_t group, const float* scales, const float* zeros,
                  const IntLimits& limits, uint8_t* codes, LaneSums* sums);
  void (*encode16)(const float* row, int64_t n, int64_t group, const float* scales, const float* zeros,
                   const IntLimits& limits, uint16_t* codes, LaneSums* sums);
  /// One scale, and zero, per element; both readable up to a multiple of 16, the scales there not 0.
  void (*encode8_columns)(const float* row, int64_t n, const float* scales, const float* zeros,
                          const IntLimits& limits, uint8_t* codes, LaneSums* sums);
  void (*encode16_columns)(const float* row, int64_t n, const float* scales, const float* zeros,
                           const IntLimits& limits, uint16_t* codes, LaneSums* sums);
  /// (code - zero) * scale, a zero per group.
  void (*decode8)(const uint8_t* codes, int64_t n, int64_t group, const float* scales, const float* zeros,
                  float* row);
  void (*decode16)(const uint16_t* codes, int64_t n, int64_t group, const float* scales, const float* zeros,
                   float* row);
  void (*decode8_columns)(const uint8_t* codes, int64_t n, const float* scales, const float* zeros,
                          float* row);
  void (*decode16_columns)(const uint16_t* codes, int64_t n, const float* scales, const float* zeros,
                           float* row);
  /// sum (|w - dequantized| * unit)^2.4 over n elements of one group. May stop early with a partial sum
  /// once that is >= bound.
  double (*shrink_error)(const float* group, int64_t n, float scale, float zero, const IntLimits& limits,
                         float unit, double bound);
  /// round(w * factor) + 128.
  void (*encode_llm_int8)(const float* row, int64_t n, float factor, uint8_t* codes);
  /// (code - 128) * absmax / 127.
  void (*decode_llm_int8)(const uint8_t* codes, int64_t n, float absmax, float* row);
};

/// Sixteen adjacent rows of a weight of 16-bit floats whose columns are contiguous, as experts stored
/// [in, out] have them: element k of row r at from[k * stride + r]. They are worked on side by side, one in
/// each lane, without a transposition.
inline constexpr int64_t kPanelRows = 16;
struct Panel {
  const uint16_t* from;
  int64_t stride;
  int64_t n;              // elements of each row
  const uint16_t* ahead;  // as many elements that come next, fetched into the cache by the way
};

/// LaneSums of a panel's rows: [element k of a group % 16][row].
struct PanelSums {
  alignas(64) float error[16][kPanelRows];
  alignas(64) float weight[16][kPanelRows];
};

/// Packed words of a panel's rows: word i of row r at to[i * stride + r].
struct PanelWords {
  uint32_t* to;
  int64_t stride;
};

struct PanelKernels {
  /// Extrema of each of `rows` adjacent rows, a multiple of kPanelRows up to kMaxRows; they return as those
  /// of RangeKernels do.
  static constexpr int64_t kMaxRows = 256;
  uint32_t (*absmax)(const Panel& panel, int64_t rows, float* absmax);
  uint32_t (*range)(const Panel& panel, int64_t rows, float* low, float* high);
  /// One group of each row by one scale, and zero (null: 0), a row; codes of `bits` 2..8.
  void (*encode_int)(const Panel& panel, const float* scales, const float* zeros, const IntLimits& limits,
                     int bits, const PanelWords& words, PanelSums* sums);
  /// One block of each row.
  void (*encode_book)(const Panel& panel, const float* absmax, const numerics::Book16& book,
                      const PanelWords& words, PanelSums* sums);
};

struct CodebookKernels {
  /// Patterns of w * (1 / absmax) by the book's thresholds; `sums` may be null.
  void (*encode4)(const float* row, int64_t n, int64_t block, const float* absmax,
                  const numerics::Book16& book, uint8_t* codes, LaneSums* sums);
  void (*encode8)(const float* row, int64_t n, int64_t block, const float* absmax, uint8_t* codes);
  void (*decode4)(const uint8_t* codes, int64_t n, int64_t block, const float* absmax,
                  const numerics::Book16& book, float* row);
  void (*decode8)(const uint8_t* codes, int64_t n, int64_t block, const float* absmax, float* row);
};

/// Blocks of 32 with one E8M0 scale each; indexed by MxRounding.
struct MxEncoders {
  void (*by_rounding[3])(const float* row, int64_t n, const uint8_t* scales, uint8_t* codes);
};

struct SmallFloatKernels {
  /// [e4m3, e5m2]: patterns of row / scale, and back.
  void (*encode_fp8[2])(const float* row, int64_t n, float scale, uint8_t* codes);
  void (*decode_fp8[2])(const uint8_t* codes, int64_t n, float scale, float* row);
  /// Indexed by MxElement.
  MxEncoders encode_mx[6];
  void (*decode_mx[6])(const uint8_t* codes, int64_t n, const uint8_t* scales, float* row);
};

/// Those of selected_isa().
const RowKernels& row_kernels();
const RangeKernels& range_kernels();
const GridKernels& grid_kernels();
const IntKernels& int_kernels();
/// Of panels of bfloat16 or, if `half`, float16.
const PanelKernels& panel_kernels(bool half);
const CodebookKernels& codebook_kernels();
const SmallFloatKernels& small_float_kernels();

}  // namespace quantaria::ops
