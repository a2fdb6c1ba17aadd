#pragma once

#include <cstdint>

#include "ops/quantize/kernels.h"

/// The inner loops of GPTQ, compiled once per instruction set (*_isa.cc).
///
/// A *strip* is sixteen rows of a matrix, stored column by column: element (row, col) at [col * 16 + row], so
/// that a column of the strip is one vector and all that is done to a column is straight vector code over
/// rows. A *panel* is eight columns of a matrix, stored row by row: (row, col) at [row * 8 + col].
namespace quantaria::ops {

inline constexpr int64_t kStripRows = 16;
inline constexpr int64_t kPanelCols = 8;
/// Columns that are quantized between two products, at most.
inline constexpr int64_t kBlockCols = 128;

/// Grids of one strip, sixteen rows side by side: constant g of row r at [g * 16 + r]. Those of integers;
/// other schemes' numbers lie in the same places (ops/gptq/grids.h).
struct StripGrids {
  const float* scales;
  const float* zeros;  // integers; all 0 when symmetric
  /// Of the block's columns.
  const int32_t* grid_of_column;
};

/// A block of columns of one strip while it is quantized.
struct StripBlock {
  int64_t cols;
  float* weights;      // in: with the errors of all earlier columns made up for
  float* residual;     // in: the original weights; out: less what they were quantized to
  uint8_t* codes;      // out: as they are stored
  const float* upper;  // [cols, kBlockCols] row-major: U, the inverse of the block's triangle of the factor
  double* errors;      // += the squares of what is spread, one sum for each row
  double* residuals;   // += the squares of the residuals
};

struct GptqKernels {
  /// c += alpha a b for `strips` strips of a [16, depth] and c [16, cols] and panels of b [depth, cols];
  /// strips and panels lie the given elements apart. Columns up to a multiple of 8 are written. Summed over k
  /// in runs of 128, so that rounding errors grow with the run and the number of runs, not with the depth.
  void (*product)(int64_t strips, int64_t depth, int64_t cols, float alpha, const float* a, int64_t a_apart,
                  const float* b, int64_t b_apart, float* c, int64_t c_apart);
  /// Quantizes columns [first, last) of the block, in order, and spreads the error of each, divided by the
  /// diagonal of U, over the columns of the block behind it.
  void (*quantize_columns)(const StripBlock& block, int64_t first, int64_t last, const StripGrids& grids,
                           const IntLimits& limits);
  /// Does the same for one column that became kept[16]; its code is the caller's.
  void (*spread)(const StripBlock& block, int64_t column, const float* kept);
  /// Extrema of each row of a strip, widened to hold 0; not NaN.
  void (*range)(const float* strip, int64_t cols, float* low, float* high);
  /// sums[row] += sum_j a(row, j) b(row, j).
  void (*add_dots)(const float* a, const float* b, int64_t cols, double* sums);
  /// a = r r^T for the upper triangle of a [n, n], row-major, replaced by the upper triangular r. False if a
  /// is not positive definite.
  bool (*factor)(double* a, int64_t n);
  /// u = r^-1 for an upper triangular r [n, n]; what is below the diagonal of u becomes 0.
  void (*invert)(const double* r, int64_t n, double* u);
};

/// Those of selected_isa().
const GptqKernels& gptq_kernels();

}  // namespace quantaria::ops
