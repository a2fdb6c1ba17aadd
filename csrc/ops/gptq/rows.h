#pragma once

#include <cstdint>
#include <vector>

#include "ops/gptq/factor.h"
#include "ops/gptq/grids.h"
#include "ops/gptq/kernels.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {

/// What all rows of a problem share.
struct GptqRows {
  const ConstMatrix& weight;
  const ConstMatrix* beside;  // null: none
  const GptqGrids& grids;
  const GptqFactor& factor;
  /// Columns of a group that is fitted when it is reached; 0 if all grids are there already.
  int64_t fitted_group;
  /// Such groups span several blocks.
  bool long_groups;
  /// By position, an index into a row's grids.
  std::vector<int32_t> grid_of_column;
};

/// Quantizes rows [first, first + rows), which no other row depends on, and adds up what it cost:
/// sums[i] for the i-th sixteen rows. Rows that hold NaN or infinity are told to `check` and left out.
struct RowSums {
  double error = 0;
  double weight = 0;
  double beside = 0;
};
void quantize_rows(const GptqRows& shared, int64_t first, int64_t rows, FiniteCheck& check, RowSums* sums);

}  // namespace quantaria::ops
