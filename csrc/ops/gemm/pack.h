#pragma once

#include <cstdint>

/// Kernels that bring rows into panels, compiled once per instruction set.
namespace quantaria::ops {

struct PackKernels {
  /// to[w * to_stride + r] = rows[r][w] for w < words, r < count <= 16.
  void (*interleave)(const uint32_t* const* rows, int count, int64_t words, uint32_t* to, int64_t to_stride);
  /// The inverse, of sixteen: rows[r][w] = from[w * from_stride + r].
  void (*separate)(const uint32_t* from, int64_t from_stride, int64_t words, uint32_t* const rows[16]);
  /// to[r * to_stride + c] = from[r * from_stride + c] for r < rows, c < n; strides in words.
  void (*copy_rows)(const uint32_t* from, int64_t from_stride, int64_t rows, int64_t n, uint32_t* to,
                    int64_t to_stride);
  /// to[c] = scale * from[c], or with `accumulate` to[c] + scale * from[c].
  void (*put_row)(const float* from, int64_t n, float scale, bool accumulate, float* to);
  /// to[c] = even[c] | odd[c] << 16.
  void (*pair)(const uint16_t* even, const uint16_t* odd, int64_t n, uint32_t* to);
  /// to[c] = x[c] rounded to bfloat16, as float32.
  void (*round_to_bfloat16)(const float* x, int64_t n, float* to);
  /// to[i] = x[i / 16 * 16 + order[i % 16]]; n is a multiple of 16.
  void (*reorder)(const float* x, int64_t n, const int32_t order[16], float* to);
  /// Groups of `length` values, each with the scale absmax / 127: codes[c] = round(x[c] / scale), and at
  /// [g * stride] the scale of group g and the sum of its codes. Of a group whose only value that is not
  /// finite is an infinity, that has code 127 or -127 and all else 0, and the scale is infinite; with NaN or
  /// several infinities the scale is NaN. length is at most 2^23.
  void (*encode_int8)(const float* x, int64_t groups, int64_t length, int8_t* codes, float* scales,
                      float* sums, int64_t stride);
};

/// Those of selected_isa().
const PackKernels& pack_kernels();

}  // namespace quantaria::ops
