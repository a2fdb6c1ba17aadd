#pragma once

#include "ops/gemm/dots.h"
#include "ops/gemm/factor.h"

namespace quantaria::ops {

/// A dense matrix [depth, columns] of float32, float16 or bfloat16, any strides, as right factor. With
/// bfloat16 products both factors are rounded to it.
///
/// Up to four rows are multiplied by contiguous columns or rows where they lie. More rows share panels that
/// are packed once.
class DenseFactor final : public Factor {
 public:
  DenseFactor(const ConstMatrix& b, bool bfloat16_products);

  int64_t depth() const override { return b_.rows; }
  int64_t columns() const override { return b_.cols; }
  int panel_columns() const override { return tiles_.columns; }
  RowFormat row_format(int64_t rows) const override;
  void multiply(const RowPanels& a, int64_t rows, int64_t panel, float* c) const override;

 private:
  Dots* few(int64_t rows) const;
  const void* pack(int64_t column, int64_t step, int64_t steps) const;
  void pack_columns(int64_t column, int64_t k, int64_t count, uint32_t* to) const;
  void pack_rows(int64_t column, int64_t k, int64_t count, uint32_t* to) const;

  ConstMatrix b_;
  bool rounded_;
  const FloatTiles& tiles_;
};

}  // namespace quantaria::ops
