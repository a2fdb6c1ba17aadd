#include "ops/gemm/row_panels.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <numeric>

#include "numerics/bfloat16.h"
#include "ops/copy/convert.h"
#include "ops/gemm/pack.h"
#include "ops/quantize/kernels.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

constexpr std::align_val_t kAlignment{64};

int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

/// Row r as float32 in `to`.
void read_row(const ConstMatrix& m, int64_t r, float* to) {
  const int64_t size = size_of(m.dtype);
  const std::byte* from = m.data + r * m.row_stride * size;
  if (m.col_stride == 1)
    return convert_row(m.dtype, from, DType::float32, reinterpret_cast<std::byte*>(to), m.cols);
  for (int64_t c = 0; c < m.cols; ++c)
    convert_row(m.dtype, from + c * m.col_stride * size, DType::float32, reinterpret_cast<std::byte*>(to + c),
                1);
}

/// A run of `rows` rows that lie side by side: what a column-major matrix is packed from, column by column.
/// Columns up to `padded` are zero.
void pack_columns(const Rows& source, int64_t first_row, int rows, int64_t padded, float* to) {
  const ConstMatrix& m = source.matrix;
  const int64_t size = size_of(m.dtype);
  for (int64_t c = 0; c < m.cols; ++c)
    convert_row(m.dtype, m.data + (first_row + c * m.col_stride) * size, DType::float32,
                reinterpret_cast<std::byte*>(to + c * rows), rows);
  std::fill(to + m.cols * rows, to + padded * rows, 0.0f);
}

/// The same for pairs of columns as bfloat16, `padded` columns in all.
void pack_column_pairs(const Rows& source, int64_t first_row, int rows, int64_t padded, uint32_t* to) {
  const ConstMatrix& m = source.matrix;
  const int64_t size = size_of(m.dtype);
  uint16_t columns[2][kMostTileRows];
  for (int64_t c = 0; c < padded; c += 2, to += rows) {
    for (int64_t half = 0; half < 2; ++half) {
      auto* const column = reinterpret_cast<std::byte*>(columns[half]);
      if (c + half < m.cols)
        convert_row(m.dtype, m.data + (first_row + (c + half) * m.col_stride) * size, DType::bfloat16, column,
                    rows);
      else
        std::memset(column, 0, sizeof columns[half]);
    }
    pack_kernels().pair(columns[0], columns[1], rows, to);
  }
}

}  // namespace

void RowPanels::Free::operator()(std::byte* p) const { ::operator delete[](p, kAlignment); }

RowPanels::RowPanels(const RowFormat& format, const Rows& rows) : format_(format), source_(rows) {
  const int per_step = values_per_step(format.operand);
  columns_ = round_up(rows.matrix.cols, std::lcm(std::lcm(format.order.unit, per_step), format.multiple));
  if (format.group > 0 && format.group < rows.matrix.cols) columns_ = round_up(columns_, format.group);
  steps_ = columns_ / per_step;
  tiles_ = (rows.count + format.tile_rows - 1) / format.tile_rows;
  if (tiles_ == 0) return;
  tile_rows_ = (rows.count + tiles_ - 1) / tiles_;
  tiles_ = (rows.count + tile_rows_ - 1) / tile_rows_;
  // A group of all columns may be shorter than the unit that they are padded to.
  if (format.group > 0) groups_ = format.group >= rows.matrix.cols ? 1 : columns_ / format.group;
  tile_bytes_ = round_up((steps_ + 2 * groups_) * tile_rows_ * 4, 64);
  data_.reset(static_cast<std::byte*>(::operator new[](static_cast<size_t>(bytes()), kAlignment)));
}

int RowPanels::rows_of(int64_t tile) const {
  return static_cast<int>(std::min(tile_rows_, source_.count - tile * tile_rows_));
}

void RowPanels::pack(int64_t tile) {
  const int rows = rows_of(tile);
  auto* const words = reinterpret_cast<uint32_t*>(data_.get() + tile * tile_bytes_);
  const ConstMatrix& m = source_.matrix;
  const bool side_by_side = m.row_stride == 1 && m.col_stride != 1 && source_.index == nullptr;
  if (side_by_side && format_.order.unit == 1 && groups_ == 0) {
    if (format_.operand == Operand::bfloat16)
      return pack_column_pairs(source_, first_row(tile), rows, columns_, words);
    if (format_.operand == Operand::float32 && !format_.rounded)
      return pack_columns(source_, first_row(tile), rows, columns_, reinterpret_cast<float*>(words));
  }
  if (m.dtype == DType::int8) {
    for (int r = 0; r < rows; ++r)
      take_int8(source_.at(first_row(tile) + r), words + r, rows, constants(tile) + r,
                constants(tile) + rows + r);
    return;
  }
  float* const row = thread_buffer<float>(Slot::row_panel, 2 * columns_);
  for (int r = 0; r < rows; ++r) {
    read_row(m, source_.at(first_row(tile) + r), row);
    std::fill(row + m.cols, row + columns_, 0.0f);
    float* ordered = row;
    if (const ColumnOrder& order = format_.order; order.unit > 1) {
      ordered = row + columns_;
      for (int64_t c = 0; c < columns_; c += order.unit)
        for (int i = 0; i < order.unit; ++i) ordered[c + i] = row[c + order.at[static_cast<size_t>(i)]];
    }
    encode(ordered, words + r, rows, constants(tile) + r, constants(tile) + groups_ * rows + r);
  }
}

/// One row, its words `tile_rows` apart.
void RowPanels::encode(const float* row, uint32_t* words, int tile_rows, float* scales, float* sums) const {
  const auto spread = [&](const void* from) {
    const auto* const contiguous = static_cast<const std::byte*>(from);
    for (int64_t s = 0; s < steps_; ++s) std::memcpy(words + s * tile_rows, contiguous + 4 * s, 4);
  };
  if (format_.operand == Operand::float32) {
    if (!format_.rounded) return spread(row);
    auto* const rounded = thread_buffer<float>(Slot::codes, columns_);
    pack_kernels().round_to_bfloat16(row, columns_, rounded);
    return spread(rounded);
  }
  if (format_.operand == Operand::bfloat16) {
    auto* const pairs = thread_buffer<uint16_t>(Slot::codes, columns_);
    row_kernels().to_bfloat16(row, columns_, pairs);
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t length = columns_ / groups_;
      float sum = 0;
      for (int64_t c = g * length; c < (g + 1) * length; ++c) sum += numerics::float_from_bfloat16(pairs[c]);
      sums[g * tile_rows] = sum;
    }
    return spread(pairs);
  }
  auto* const codes = thread_buffer<int8_t>(Slot::codes, columns_);
  encode_int8(row, codes, tile_rows, scales, sums);
  spread(codes);
}

/// A row whose codes and scale are there: one group.
void RowPanels::take_int8(int64_t row, uint32_t* words, int tile_rows, float* scale, float* sum) const {
  const ConstMatrix& m = source_.matrix;
  const auto* const codes = reinterpret_cast<const int8_t*>(m.data) + row * m.row_stride;
  auto* const ordered = thread_buffer<int8_t>(Slot::codes, columns_);
  int32_t total = 0;
  for (int64_t c = 0; c < columns_; ++c) {
    const int64_t unit = c / format_.order.unit * format_.order.unit;
    const int64_t from = format_.order.unit == 1 ? c : unit + format_.order.at[static_cast<size_t>(c - unit)];
    ordered[c] = from < m.cols ? codes[from] : int8_t{0};
    total += ordered[c];
  }
  for (int64_t s = 0; s < steps_; ++s) std::memcpy(words + s * tile_rows, ordered + 4 * s, 4);
  *scale = source_.scales[row];
  *sum = static_cast<float>(total);
}

void RowPanels::encode_int8(const float* row, int8_t* codes, int tile_rows, float* scales,
                            float* sums) const {
  if (columns_ == 0) return;
  const int64_t length = columns_ / groups_;
  for (int64_t g = 0; g < groups_; ++g) {
    const float* const group = row + g * length;
    float largest = 0;
    // A NaN or infinity makes the group's scale NaN, and so every sum that it enters.
    const bool finite = range_kernels().absmax(group, length, length, &largest) < numerics::kInfinityBits;
    if (!finite) largest = 0;
    // 127 / largest of a denormal would be infinite.
    const float boost = largest < 0x1p-60f ? 0x1p64f : 1.0f;
    const float factor = largest > 0 ? 127.0f / (largest * boost) : 0.0f;
    int8_t* const to = codes + g * length;
    int32_t sum = 0;
    if (factor > 0)
      sum = pack_kernels().encode_int8(group, length, boost, factor, to);
    else
      std::memset(to, 0, static_cast<size_t>(length));
    scales[g * tile_rows] = finite ? largest / 127.0f : std::nanf("");
    sums[g * tile_rows] = static_cast<float>(sum);
  }
}

}  // namespace quantaria::ops
