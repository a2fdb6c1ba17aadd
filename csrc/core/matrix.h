#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"

namespace quantaria {

/// A read-only view of a matrix: element (r, c) lies at data + (r * row_stride + c * col_stride) elements.
/// Strides are counted in elements and may be anything, so that a slice of a stacked expert tensor
/// or its transpose is read where it lies.
struct ConstMatrix {
  const std::byte* data;
  DType dtype;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride;
};

/// The same, to be written.
struct Matrix {
  std::byte* data;
  DType dtype;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride;

  operator ConstMatrix() const { return {data, dtype, rows, cols, row_stride, col_stride}; }
};

}  // namespace quantaria
