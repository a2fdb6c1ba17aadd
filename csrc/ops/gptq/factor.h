#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "core/thread_pool.h"
#include "ops/gptq/gptq.h"

namespace quantaria::ops {

/// Columns [first, first + cols), in the order of quantization, with what the steps on them read.
struct FactorBlock {
  int64_t first;
  int64_t cols;
  const float* factor;   // panels of R(0 .. first, columns)
  const float* hessian;  // panels of H(0 .. first + cols, columns): strictly above the diagonal, and half
                         // the diagonal, so that x^T H x is twice x times this times x
  const float* upper;    // U, the inverse of R's triangle of these columns, [cols, kBlockCols]
  const float* upper_panels;   // the same as panels
  int64_t upper_panels_apart;  // elements

  int64_t factor_apart() const;
  int64_t hessian_apart() const;
};

/// The Hessian of a problem as its weights' rows need it: permuted, damped, factored, in panels. Its scale
/// does not matter to the result; it is divided by the mean of its diagonal, and `unit` gives it back.
class GptqFactor {
 public:
  /// Blocks of up to `block_cols`, at most kBlockCols; none ends inside a group of `group` columns that it
  /// could hold, and none spans two groups that it could not (0: no groups).
  GptqFactor(ThreadPool& pool, const GptqInput& input, const GptqOptions& options, int64_t block_cols,
             int64_t group, const Scratch& scratch);

  const std::vector<FactorBlock>& blocks() const { return blocks_; }
  /// The column of the weight that is quantized at a position.
  const std::vector<int64_t>& order() const { return order_; }
  /// By position.
  const std::vector<bool>& dead() const { return dead_; }
  int64_t dead_columns() const { return dead_columns_; }
  double unit() const { return unit_; }
  double damping() const { return damping_; }
  int64_t attempts() const { return attempts_; }

 private:
  void order_columns(const GptqInput& input, const GptqOptions& options, int64_t group);
  void cut_blocks(int64_t block_cols, int64_t group);
  void gather(ThreadPool& pool, const float* products, float* a) const;
  void pack_hessian(ThreadPool& pool, const float* a);
  void damp(float* a) const;
  void pack_factor(ThreadPool& pool, const float* a);

  int64_t in_;
  std::vector<int64_t> order_;
  std::vector<bool> dead_;
  int64_t dead_columns_ = 0;
  double mean_ = 1;  // of the products' diagonal, dead columns left out
  double unit_ = 1;
  double damping_ = 0;
  int64_t attempts_ = 0;
  std::vector<FactorBlock> blocks_;
  std::shared_ptr<Storage> panels_;
  std::vector<float> uppers_;
};

}  // namespace quantaria::ops
