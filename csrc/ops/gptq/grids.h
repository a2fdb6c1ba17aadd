#pragma once

#include <cstdint>
#include <memory>

#include "core/matrix.h"
#include "core/thread_pool.h"
#include "ops/gptq/gptq.h"
#include "ops/gptq/kernels.h"

namespace quantaria::ops {

/// What GPTQ asks of a scheme: the grids that weights are rounded on, and where the result goes. A grid of a
/// row is two numbers, whose meaning is the scheme's own: an integer grid's scale and zero, a block's absmax.
/// Sixteen rows of a strip lie side by side in `first` and `second`.
class GptqGrids {
 public:
  virtual ~GptqGrids() = default;

  /// Columns of a group whose grid is fitted to weights as they stand when its first column is reached; 0 if
  /// all grids are those of round-to-nearest.
  virtual int64_t fitted_group() const = 0;
  /// Of a row.
  virtual int64_t count() const = 0;
  /// The grid of the column that is quantized at a position.
  virtual int64_t grid_of(int64_t position, int64_t column) const = 0;

  /// Whether anything is taken from the weight as a whole. prepare() is then called with it, and for weights
  /// without columns, before all else; it may write codes, which are replaced.
  virtual bool needs_weight() const { return fitted_group() == 0; }
  virtual void prepare(ThreadPool& pool, const ConstMatrix& weight) = 0;
  /// A grid that prepare() made.
  virtual void load(int64_t row, int64_t grid, float* first, float* second) const = 0;
  /// Fits grids to the weights of a strip that begins with row `row`.
  virtual void fit(int64_t row, const float* strip, int64_t cols, float* first, float* second) const = 0;

  /// Quantizes columns [from, to) of a block and spreads their errors.
  virtual void quantize(const StripBlock& block, int64_t from, int64_t to, const StripGrids& grids) const = 0;

  /// Stores a row: codes in the weight's order of columns, kPackSlack zeros behind them, and if they were
  /// fitted its grids, sixteen numbers apart. Rows may be written in parallel; finish() comes last.
  virtual void write(int64_t row, const uint8_t* codes, const float* first, const float* second) const = 0;
  virtual void finish(ThreadPool&) const {}
};

std::unique_ptr<GptqGrids> int_grids(const ConstMatrix& weight, const IntScheme& scheme,
                                     const GptqOptions& options, const IntStored& to);
std::unique_ptr<GptqGrids> codebook_grids(const ConstMatrix& weight, const CodebookScheme& scheme,
                                          const GptqOptions& options, const CodebookStored& to,
                                          const Scratch& scratch);
std::unique_ptr<GptqGrids> fp8_grids(const ConstMatrix& weight, const Fp8Scheme& scheme, const Fp8Stored& to);
std::unique_ptr<GptqGrids> mx_grids(const ConstMatrix& weight, const MxScheme& scheme,
                                    const GptqOptions& options, const MxStored& to);

}  // namespace quantaria::ops
