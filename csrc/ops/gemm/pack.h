#pragma once

#include <cstdint>

/// Kernels that bring rows into panels, compiled once per instruction set.
namespace quantaria::ops {

struct PackKernels {
  /// to[w * to_stride + r] = rows[r][w] for w < words, r < 16.
  void (*interleave)(const uint32_t* const rows[16], int64_t words, uint32_t* to, int64_t to_stride);
  /// The inverse: rows[r][w] = from[w * from_stride + r].
  void (*separate)(const uint32_t* from, int64_t from_stride, int64_t words, uint32_t* const rows[16]);
  /// to[r * to_stride + c] = from[r * from_stride + c] for r < rows, c < n; strides in words.
  void (*copy_rows)(const uint32_t* from, int64_t from_stride, int64_t rows, int64_t n, uint32_t* to,
                    int64_t to_stride);
  /// to[c] = even[c] | odd[c] << 16.
  void (*pair)(const uint16_t* even, const uint16_t* odd, int64_t n, uint32_t* to);
  /// to[c] = x[c] rounded to bfloat16, as float32.
  void (*round_to_bfloat16)(const float* x, int64_t n, float* to);
  /// codes[c] = round(x[c] * boost * factor); returns their sum. n is a multiple of 4 and at most 2^23.
  int32_t (*encode_int8)(const float* x, int64_t n, float boost, float factor, int8_t* codes);
};

/// Those of selected_isa().
const PackKernels& pack_kernels();

}  // namespace quantaria::ops
