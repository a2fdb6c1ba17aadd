#include "ops/gptq/kernels.h"

#include "ops/gptq/strip_product.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

using numerics::kRoundingMagic;

void add_rows(const Floats& rows, double* sums) {
  float values[kStripRows];
  store(values, rows);
  for (int64_t r = 0; r < kStripRows; ++r) sums[r] += static_cast<double>(values[r]);
}

/// Squares that the columns of a block leave behind.
struct Squares {
  Floats errors = splat(0.0f);
  Floats residuals = splat(0.0f);

  void add_to(const StripBlock& block) const {
    add_rows(errors, block.errors);
    add_rows(residuals, block.residuals);
  }
};

/// Column i, w, has become `kept`.
QUANTARIA_LANES void spread_column(const StripBlock& block, int64_t i, const Floats& w, const Floats& kept,
                                   Squares& squares) {
  const Floats residual = load(block.residual + i * kStripRows) - kept;
  store(block.residual + i * kStripRows, residual);
  squares.residuals = multiply_add(residual, residual, squares.residuals);

  const float* const upper = block.upper + i * kBlockCols;
  const Floats error = (kept - w) / splat(upper[i]);
  squares.errors = multiply_add(error, error, squares.errors);
  for (int64_t j = i + 1; j < block.cols; ++j) {
    float* const to = block.weights + j * kStripRows;
    store(to, multiply_add(error, splat(upper[j]), load(to)));
  }
}

/// As quantize computes it (ops/quantize/quantize_int_isa.cc): with nothing to make up for, the codes are
/// those of round-to-nearest.
void quantize_columns(const StripBlock& block, int64_t first, int64_t last, const StripGrids& grids,
                      const IntLimits& limits) {
  Squares squares;
  for (int64_t i = first; i < last; ++i) {
    const int64_t grid = grids.grid_of_column[i] * kStripRows;
    const Floats scale = load(grids.scales + grid);
    const Floats zero = load(grids.zeros + grid);
    const Floats w = load(block.weights + i * kStripRows);
    const Floats low = splat(limits.low) - zero;
    const Floats high = splat(limits.high) - zero;
    const Floats magic = smaller(larger(w / scale, low), high) + splat(kRoundingMagic);
    store_low(block.codes + i * kStripRows, bits(magic) + (truncate(zero) + splat(limits.offset)));
    spread_column(block, i, w, (magic - splat(kRoundingMagic)) * scale, squares);
  }
  squares.add_to(block);
}

void spread(const StripBlock& block, int64_t column, const float* kept) {
  Squares squares;
  spread_column(block, column, load(block.weights + column * kStripRows), load(kept), squares);
  squares.add_to(block);
}

void range(const float* strip, int64_t cols, float* low, float* high) {
  Floats least = splat(0.0f);
  Floats most = splat(0.0f);
  for (int64_t j = 0; j < cols; ++j) {
    const Floats w = load(strip + j * kStripRows);
    least = smaller(w, least);
    most = larger(w, most);
  }
  store(low, least);
  store(high, most);
}

void add_dots(const float* a, const float* b, int64_t cols, double* sums) {
  Floats total = splat(0.0f);
  for (int64_t j = 0; j < cols; ++j) total = total + load(a + j * kStripRows) * load(b + j * kStripRows);
  add_rows(total, sums);
}

// The triangles are small: in float64 their errors are nothing beside those of the float32 products around
// them. Columns from the last to the first; the inner loops run along rows, and the compiler vectorises them.

bool factor(double* a, int64_t n) {
  double column[kBlockCols];
  for (int64_t j = n - 1; j >= 0; --j) {
    const double pivot = a[j * n + j];
    if (!(pivot > 0) || pivot > 1e300) return false;  // NaN too
    const double root = __builtin_sqrt(pivot);
    a[j * n + j] = root;
    for (int64_t i = 0; i < j; ++i) column[i] = a[i * n + j] /= root;
    for (int64_t i = 0; i < j; ++i) {
      const double scale = column[i];
      double* const row = a + i * n;
      for (int64_t k = i; k < j; ++k) row[k] -= scale * column[k];
    }
  }
  return true;
}

void invert(const double* r, int64_t n, double* u) {
  for (int64_t i = n - 1; i >= 0; --i) {
    double* const row = u + i * n;
    for (int64_t j = 0; j < n; ++j) row[j] = 0;
    for (int64_t k = i + 1; k < n; ++k) {
      const double scale = r[i * n + k];
      const double* const below = u + k * n;
      for (int64_t j = k; j < n; ++j) row[j] -= scale * below[j];
    }
    const double diagonal = 1 / r[i * n + i];
    for (int64_t j = i + 1; j < n; ++j) row[j] *= diagonal;
    row[i] = diagonal;
  }
}

}  // namespace

extern const GptqKernels gptq_kernels;
const GptqKernels gptq_kernels = {strip_product, quantize_columns, spread, range, add_dots, factor, invert};

}  // namespace quantaria::ops::QUANTARIA_ISA
