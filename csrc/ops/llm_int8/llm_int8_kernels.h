#pragma once

#include <cstdint>

namespace quantaria::ops {

/// The row kernels, compiled once per instruction set. Rows are contiguous float32; `large` is the bit
/// pattern of the least magnitude that is large.
struct LlmInt8Kernels {
  /// mask[c] |= the value is large.
  void (*mark_large)(const float* row, int64_t n, int32_t large, uint8_t* mask);
  float (*absmax)(const float* row, int64_t n, int32_t large);
  /// mask may be null.
  void (*encode)(const float* row, int64_t n, float factor, const uint8_t* mask, int8_t* codes);
};
/// Those of selected_isa().
const LlmInt8Kernels& llm_int8_kernels();

}  // namespace quantaria::ops
