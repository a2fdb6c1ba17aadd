#pragma once

#include <cstddef>
#include <cstdint>

#include "core/dtype.h"
#include "ops/gemm/tile.h"

/// Products of few rows with a dense matrix whose columns or rows are contiguous, compiled once per
/// instruction set: it is read once, where it lies. Sums are those of a dot product in sixteen lanes,
/// whatever the layout.
namespace quantaria::ops {

inline constexpr int kMostDotRows = 4;
/// Values that a row is padded to a multiple of, with zeros.
inline constexpr int kDotPadding = 32;

/// c[r * c_stride + n] = sum_k a[r][k] b(k, n) for k < depth, n < columns. b(k, n) lies at element
/// n * stride + k, or k * stride + n of a matrix whose rows are contiguous. Rows of a are in the operand's
/// type and padded.
using Dots = void(const void* const* a, const std::byte* b, int64_t stride, int64_t depth, int64_t columns,
                  float* c, int64_t c_stride);

/// What of a matrix is contiguous.
enum class Contiguous : uint8_t { columns, rows };

/// [Contiguous][rows - 1]
struct FloatDots {
  Dots* of_float32[2][kMostDotRows];
  Dots* of_float16[2][kMostDotRows];
  Dots* of_bfloat16[2][kMostDotRows];
};
struct PairDots {
  Dots* of_bfloat16[2][kMostDotRows];
};

/// That of selected_isa() for so many rows of an operand and a matrix of a dtype; null if there is none.
Dots* dots(Operand operand, DType dtype, Contiguous layout, int64_t rows);

}  // namespace quantaria::ops
