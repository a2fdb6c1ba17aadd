#pragma once

#include <cstdint>

namespace quantaria::ops {

/// Columns that one call of DecoderKernels::product makes.
inline constexpr int64_t kProductColumns = 16;

/// The maximum of a row of logits, and what the softmax over it divides by: sum of exp(x - largest).
struct LogitSum {
  float largest;
  double sum;
};

/// Row kernels, compiled once per instruction set.
struct DecoderKernels {
  /// to = x / sqrt(mean(x^2) + eps) * gain
  void (*rms_norm)(const float* x, const float* gain, float eps, int64_t n, float* to);
  /// c[r][0..16) = sum over i < depth of a[r * lda + i] * b[i * ldb + 0..16), i rising, for r < rows.
  void (*product)(const float* a, int64_t lda, int64_t rows, int64_t depth, const float* b, int64_t ldb,
                  float* c, int64_t ldc);
  /// x = exp(x - max) in place; returns the sum. NaN and infinities make it NaN.
  float (*exponentials)(float* x, int64_t n);
  LogitSum (*logit_sum)(const float* x, int64_t n);
  /// sum exp(b[i] - largest) * ((b[i] - largest) - (a[i] - other_largest))
  double (*divergence)(const float* b, float largest, const float* a, float other_largest, int64_t n);
};

/// Those of selected_isa().
const DecoderKernels& decoder_kernels();

}  // namespace quantaria::ops
