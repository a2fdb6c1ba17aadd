#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "core/matrix.h"
#include "ops/gemm/tile.h"

namespace quantaria::ops {

/// The left factor of a product where it lies: rows of a matrix, all of them or those of a list.
struct Rows {
  ConstMatrix matrix;  // float32, float16 or bfloat16; for int8 operands also int8, quantized by the caller
  const int32_t* index = nullptr;
  int64_t count = 0;
  const float* scales = nullptr;  // of int8 rows: a value is code * scale

  int64_t at(int64_t row) const { return index == nullptr ? row : index[row]; }
};

/// The order in which a kernel takes the columns of the left factor: position i of each unit holds column
/// at[i] of the unit, so that a right factor need not be put in order when it is decoded.
struct ColumnOrder {
  static constexpr int kMostUnit = 32;
  int unit = 1;
  std::array<uint8_t, kMostUnit> at{};

  bool operator==(const ColumnOrder&) const = default;
};

/// How a right factor's kernels want the left one.
struct RowFormat {
  Operand operand = Operand::float32;
  bool rounded = false;  // float32 operands that hold bfloat16 values
  int tile_rows = 1;     // of a tile, at most
  ColumnOrder order;
  int multiple = 1;  // columns are padded with zeros to a multiple of it, of a step and of order.unit
  // Columns that share a scale (int8 operands) or whose sum is wanted (bfloat16 ones): a multiple of
  // order.unit, or at least all columns; 0: none.
  int64_t group = 0;

  bool operator==(const RowFormat&) const = default;
};

/// A left factor packed into panels, one for each tile of rows: [steps][rows of the tile] words. Rows are
/// spread evenly over the tiles. Columns are padded with zeros to whole steps and units.
class RowPanels {
 public:
  /// Memory for it; pack() fills it.
  RowPanels(const RowFormat& format, const Rows& rows);

  int64_t rows() const { return source_.count; }
  int64_t steps() const { return steps_; }
  int64_t tiles() const { return tiles_; }
  int64_t first_row(int64_t tile) const { return tile * tile_rows_; }
  int rows_of(int64_t tile) const;
  const std::byte* words(int64_t tile) const { return data_.get() + tile * tile_bytes_; }

  // Where the format has groups. int8: a value is code * scale; sums are those of codes.
  int64_t groups() const { return groups_; }
  int64_t steps_per_group() const { return steps_ / groups_; }
  const float* scales(int64_t tile) const { return constants(tile); }  // [groups][rows]
  const float* sums(int64_t tile) const { return constants(tile) + groups_ * rows_of(tile); }

  /// Packs one tile; tiles may be packed in parallel.
  void pack(int64_t tile);

  int64_t bytes() const { return tiles_ * tile_bytes_; }

 private:
  float* constants(int64_t tile) const {
    return reinterpret_cast<float*>(data_.get() + tile * tile_bytes_ + steps_ * tile_rows_ * 4);
  }
  void encode(const float* row, uint32_t* line, int tile_rows, float* scales, float* sums) const;
  void take_int8(int64_t row, bool ordered, uint32_t* line, float* scale, float* sum) const;

  RowFormat format_;
  Rows source_;
  int64_t columns_ = 0;  // padded
  int64_t steps_ = 0;
  int64_t groups_ = 0;
  int64_t tiles_ = 0;
  int64_t tile_rows_ = 0;
  int64_t tile_bytes_ = 0;
  struct Free {
    void operator()(std::byte* p) const;
  };
  std::unique_ptr<std::byte[], Free> data_;
};

}  // namespace quantaria::ops
