#include "ops/gemm/dense_factor.h"

#include <algorithm>
#include <cstring>

#include "ops/copy/convert.h"
#include "ops/gemm/pack.h"
#include "ops/quantize/kernels.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

constexpr int kSquare = 16;

/// n elements of `from`, `stride` apart, as float32.
void read(DType dtype, const std::byte* from, int64_t stride, int64_t n, float* to) {
  auto* const bytes = reinterpret_cast<std::byte*>(to);
  if (stride == 1) return convert_row(dtype, from, DType::float32, bytes, n);
  const int64_t size = size_of(dtype);
  for (int64_t i = 0; i < n; ++i)
    convert_row(dtype, from + i * stride * size, DType::float32, bytes + 4 * i, 1);
}

}  // namespace

DenseFactor::DenseFactor(const ConstMatrix& b, bool bfloat16_products)
    : b_(b), rounded_(bfloat16_products), tiles_(bfloat16_products ? bfloat16_tiles() : float32_tiles()) {}

/// Null where elements would have to be rounded or gathered.
Dots* DenseFactor::few(int64_t rows) const {
  const bool contiguous = b_.row_stride == 1 || b_.col_stride == 1;
  const bool as_they_lie = contiguous && (!rounded_ || b_.dtype == DType::bfloat16);
  const Contiguous layout = b_.row_stride == 1 ? Contiguous::columns : Contiguous::rows;
  return as_they_lie ? dots(tiles_.operand, b_.dtype, layout, rows) : nullptr;
}

RowFormat DenseFactor::row_format(int64_t rows) const {
  RowFormat format;
  format.operand = tiles_.operand;
  format.rounded = rounded_;
  const bool few_rows = few(rows) != nullptr;
  format.tile_rows = few_rows ? 1 : tiles_.rows;
  if (few_rows) format.multiple = kDotPadding;
  return format;
}

void DenseFactor::multiply(const RowPanels& a, int64_t rows, int64_t panel, float* c) const {
  const int64_t column = panel * tiles_.columns;
  if (few(a.rows()) != nullptr) {
    const void* row[kMostDotRows];
    for (int64_t r = 0; r < rows; ++r) row[r] = a.words(r);
    const int64_t stride = b_.row_stride == 1 ? b_.col_stride : b_.row_stride;
    return few(rows)(row, b_.data + column * b_.col_stride * size_of(b_.dtype), stride, b_.rows,
                     std::min<int64_t>(tiles_.columns, b_.cols - column), c, tiles_.columns);
  }
  multiply_panel(tiles_, a, rows, [&](int64_t step, int64_t steps) { return pack(column, step, steps); }, c);
}

const void* DenseFactor::pack(int64_t column, int64_t step, int64_t steps) const {
  const int per_step = values_per_step(tiles_.operand);
  auto* const words = thread_buffer<uint32_t>(Slot::right_panel, steps * tiles_.columns);
  const int64_t k = step * per_step;
  const int64_t count = std::min(steps * per_step, b_.rows - k);
  const int64_t whole = count / per_step;
  // A depth that ends inside a step, and columns past the last one.
  if (whole < steps || column + tiles_.columns > b_.cols)
    std::memset(words, 0, static_cast<size_t>(steps * tiles_.columns * 4));
  if (b_.col_stride == 1 && b_.row_stride != 1)
    pack_rows(column, k, count, words);
  else
    pack_columns(column, k, count, words);
  return words;
}

/// Each row of b is a step or half of one.
void DenseFactor::pack_rows(int64_t column, int64_t k, int64_t count, uint32_t* to) const {
  const int64_t n = std::min<int64_t>(tiles_.columns, b_.cols - column);
  const int64_t size = size_of(b_.dtype);
  const auto from = [&](int64_t row) { return b_.data + (row * b_.row_stride + column) * size; };
  if (tiles_.operand == Operand::float32 && b_.dtype == DType::float32 && !rounded_)
    return pack_kernels().copy_rows(reinterpret_cast<const uint32_t*>(from(k)), b_.row_stride, count, n, to,
                                    tiles_.columns);
  if (tiles_.operand == Operand::float32) {
    for (int64_t i = 0; i < count; ++i, to += tiles_.columns) {
      auto* const row = reinterpret_cast<float*>(to);
      convert_row(b_.dtype, from(k + i), DType::float32, reinterpret_cast<std::byte*>(to), n);
      if (rounded_) pack_kernels().round_to_bfloat16(row, n, row);
    }
    return;
  }
  alignas(64) uint16_t rows[2][64] = {};
  for (int64_t i = 0; i < count; i += 2, to += tiles_.columns) {
    if (b_.dtype == DType::bfloat16 && i + 1 < count) {
      pack_kernels().pair(reinterpret_cast<const uint16_t*>(from(k + i)),
                          reinterpret_cast<const uint16_t*>(from(k + i + 1)), n, to);
      continue;
    }
    for (int64_t half = 0; half < 2; ++half) {
      if (i + half < count)
        convert_row(b_.dtype, from(k + i + half), DType::bfloat16, reinterpret_cast<std::byte*>(rows[half]),
                    n);
      else
        std::memset(rows[half], 0, sizeof rows[half]);
    }
    pack_kernels().pair(rows[0], rows[1], n, to);
  }
}

/// Each column of b is contiguous, or is made so: sixteen at a time are interleaved.
void DenseFactor::pack_columns(int64_t column, int64_t k, int64_t count, uint32_t* to) const {
  const int per_step = values_per_step(tiles_.operand);
  const int64_t words = (count + per_step - 1) / per_step;
  const int64_t size = size_of(b_.dtype);
  const DType wanted = per_step == 2 ? DType::bfloat16 : DType::float32;
  const bool as_it_lies =
      b_.row_stride == 1 && b_.dtype == wanted && count % per_step == 0 && !(rounded_ && per_step == 1);
  auto* const zeros = thread_buffer<uint32_t>(Slot::codes, (kSquare + 1) * words + count);
  std::fill_n(zeros, words, 0u);
  auto* const wide = reinterpret_cast<float*>(zeros + (kSquare + 1) * words);
  for (int64_t first = 0; first < tiles_.columns; first += kSquare) {
    const uint32_t* columns[kSquare];
    for (int64_t i = 0; i < kSquare; ++i) {
      const int64_t c = column + first + i;
      columns[i] = zeros;
      if (c >= b_.cols) continue;
      const std::byte* const from = b_.data + (k * b_.row_stride + c * b_.col_stride) * size;
      if (as_it_lies) {
        columns[i] = reinterpret_cast<const uint32_t*>(from);
        continue;
      }
      uint32_t* const made = zeros + (1 + i) * words;
      made[words - 1] = 0;
      read(b_.dtype, from, b_.row_stride, count, wide);
      if (per_step == 2)
        row_kernels().to_bfloat16(wide, count, reinterpret_cast<uint16_t*>(made));
      else if (rounded_)
        pack_kernels().round_to_bfloat16(wide, count, reinterpret_cast<float*>(made));
      else
        std::memcpy(made, wide, static_cast<size_t>(count) * 4);
      columns[i] = made;
    }
    pack_kernels().interleave(columns, kSquare, words, to + first, tiles_.columns);
  }
}

}  // namespace quantaria::ops
