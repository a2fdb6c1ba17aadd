#pragma once

#include "core/matrix.h"
#include "ops/copy/cast_value.cuh"

namespace quantaria::ops {

/// What becomes of a product's sum: bias added, rounded once, stored. Dtypes are the same for all threads,
/// and floats: the integers' conversions as well, inlined for each of a thread's sums, would be nine tenths
/// of a product's code.
struct Epilogue {
  const std::byte* bias;  // or null
  DType bias_dtype;
  int64_t bias_stride;
  Matrix c;

  __device__ void write(int64_t row, int64_t col, float sum) const {
    if (row < 0 || row >= c.rows || col >= c.cols) return;
    if (bias) sum += load_real(bias_dtype, bias, col * bias_stride);
    store_real(c.dtype, c.data, row * c.row_stride + col * c.col_stride, sum);
  }
};

/// bias: [1, n] or null.
inline Epilogue epilogue_of(const ConstMatrix* bias, const Matrix& c) {
  return {bias ? bias->data : nullptr, bias ? bias->dtype : DType::float32, bias ? bias->col_stride : 0, c};
}

}  // namespace quantaria::ops
