#include "ops/gemm/row_panels.h"

#include <algorithm>
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

// Orders change places within so many columns, if at all.
constexpr int kOrderUnits = 16;

/// Which column comes to each place of kOrderUnits; false if each stays where it is.
bool places_of(const ColumnOrder& order, int32_t (&at)[kOrderUnits]) {
  bool changes = false;
  for (int i = 0; i < kOrderUnits; ++i) {
    at[i] = i / order.unit * order.unit + order.at[static_cast<size_t>(i % order.unit)];
    changes = changes || at[i] != i;
  }
  return changes;
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
  if (steps_ == 0) return;  // no depth: kernels read nothing
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
  // One row after the other becomes a line of words; then the lines are interleaved.
  int32_t at[kOrderUnits];
  const bool ordered = places_of(format_.order, at);
  const int64_t padded = round_up(columns_, kOrderUnits);
  const bool whole = m.col_stride == 1 && columns_ == m.cols && !ordered;
  const DType wanted = format_.operand == Operand::bfloat16 ? DType::bfloat16 : DType::float32;
  const bool as_it_lies = whole && m.dtype == wanted && format_.operand != Operand::int8 &&
                          !(format_.rounded && wanted == DType::float32) && groups_ == 0;
  auto* const lines = thread_buffer<uint32_t>(Slot::codes, rows * steps_);
  float* const wide = thread_buffer<float>(Slot::row_panel, 2 * padded);
  const uint32_t* line_of[kMostTileRows];
  for (int r = 0; r < rows; ++r) {
    const int64_t row = source_.at(first_row(tile) + r);
    const std::byte* const from = m.data + row * m.row_stride * size_of(m.dtype);
    if (as_it_lies) {
      line_of[r] = reinterpret_cast<const uint32_t*>(from);
      continue;
    }
    uint32_t* const line = lines + r * steps_;
    line_of[r] = line;
    float* const scale = constants(tile) + r;
    float* const sum = constants(tile) + groups_ * rows + r;
    if (m.dtype == DType::int8) {
      take_int8(row, ordered, line, scale, sum);
      continue;
    }
    if (whole && m.dtype == DType::float32) {
      encode(reinterpret_cast<const float*>(from), line, rows, scale, sum);
      continue;
    }
    read_row(m, row, wide);
    std::fill(wide + m.cols, wide + padded, 0.0f);
    if (ordered) pack_kernels().reorder(wide, padded, at, wide + padded);
    encode(ordered ? wide + padded : wide, line, rows, scale, sum);
  }
  pack_kernels().interleave(line_of, rows, steps_, words, rows);
}

/// One row to a line of words.
void RowPanels::encode(const float* row, uint32_t* line, int tile_rows, float* scales, float* sums) const {
  if (format_.operand == Operand::float32) {
    if (format_.rounded)
      pack_kernels().round_to_bfloat16(row, columns_, reinterpret_cast<float*>(line));
    else
      std::memcpy(line, row, static_cast<size_t>(columns_) * 4);
    return;
  }
  if (format_.operand == Operand::bfloat16) {
    auto* const pairs = reinterpret_cast<uint16_t*>(line);
    row_kernels().to_bfloat16(row, columns_, pairs);
    for (int64_t g = 0; g < groups_; ++g) {
      const int64_t length = columns_ / groups_;
      float sum = 0;
      for (int64_t c = g * length; c < (g + 1) * length; ++c) sum += numerics::float_from_bfloat16(pairs[c]);
      sums[g * tile_rows] = sum;
    }
    return;
  }
  if (columns_ > 0)
    pack_kernels().encode_int8(row, groups_, columns_ / groups_, reinterpret_cast<int8_t*>(line), scales,
                               sums, tile_rows);
}

/// A row whose codes and scale are there: one group.
void RowPanels::take_int8(int64_t row, bool ordered, uint32_t* line, float* scale, float* sum) const {
  const ConstMatrix& m = source_.matrix;
  const auto* const codes = reinterpret_cast<const int8_t*>(m.data) + row * m.row_stride;
  auto* const to = reinterpret_cast<int8_t*>(line);
  std::memcpy(to, codes, static_cast<size_t>(m.cols));
  std::memset(to + m.cols, 0, static_cast<size_t>(columns_ - m.cols));
  const int64_t unit = format_.order.unit;
  for (int64_t first = 0; ordered && first < columns_; first += unit) {
    int8_t as_they_lie[ColumnOrder::kMostUnit];
    std::memcpy(as_they_lie, to + first, static_cast<size_t>(unit));
    for (int64_t i = 0; i < unit; ++i) to[first + i] = as_they_lie[format_.order.at[static_cast<size_t>(i)]];
  }
  int32_t total = 0;
  for (int64_t c = 0; c < columns_; ++c) total += to[c];
  *scale = source_.scales[row];
  *sum = static_cast<float>(total);
}

}  // namespace quantaria::ops
