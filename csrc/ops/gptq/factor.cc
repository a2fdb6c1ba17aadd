#include "ops/gptq/factor.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>

#include "core/error.h"
#include "ops/gptq/cholesky.h"
#include "ops/gptq/kernels.h"

namespace quantaria::ops {
namespace {

constexpr int64_t padded(int64_t cols) { return (cols + kPanelCols - 1) / kPanelCols * kPanelCols; }

/// Where the damping goes after a first failure at most a tenth of it, and where it must have helped: the
/// mean of the diagonal times the number of columns makes any Gram matrix positive definite.
constexpr double kLeastRaisedDamping = 1e-4;
constexpr double kLargestDamping = 1e12;
constexpr double kRaise = 10;

/// [depth, cols] of a row-major matrix as panels; columns beyond `cols` are 0.
void pack_panels(const float* from, int64_t stride, int64_t depth, int64_t cols, float* to) {
  for (int64_t first = 0; first < cols; first += kPanelCols) {
    const int64_t width = std::min(kPanelCols, cols - first);
    for (int64_t k = 0; k < depth; ++k, to += kPanelCols) {
      std::memcpy(to, from + k * stride + first, static_cast<size_t>(width) * sizeof(float));
      std::fill(to + width, to + kPanelCols, 0.0f);
    }
  }
}

}  // namespace

int64_t FactorBlock::factor_apart() const { return first * kPanelCols; }
int64_t FactorBlock::hessian_apart() const { return (first + cols) * kPanelCols; }

GptqFactor::GptqFactor(ThreadPool& pool, const GptqInput& input, const GptqOptions& options,
                       int64_t block_cols, int64_t group, const Scratch& scratch)
    : in_(input.weight.cols), damping_(options.damping) {
  order_columns(input, options, group);
  cut_blocks(block_cols, group);

  int64_t elements = 0;
  for (const FactorBlock& block : blocks_) elements += padded(block.cols) * (2 * block.first + block.cols);
  panels_ = scratch(elements * size_of(DType::float32));
  uppers_.resize(blocks_.size() * 2 * kBlockCols * kBlockCols);
  auto* next = reinterpret_cast<float*>(panels_->data());
  float* upper = uppers_.data();
  for (FactorBlock& block : blocks_) {
    block.factor = next;
    block.hessian = next += padded(block.cols) * block.first;
    next += padded(block.cols) * (block.first + block.cols);
    block.upper = upper;
    block.upper_panels = upper + kBlockCols * kBlockCols;
    block.upper_panels_apart = block.cols * kPanelCols;
    upper += 2 * kBlockCols * kBlockCols;
  }

  const std::shared_ptr<Storage> memory = scratch(in_ * in_ * size_of(DType::float32));
  auto* const a = reinterpret_cast<float*>(memory->data());
  ReversedCholesky cholesky(pool, a, in_);
  for (;;) {
    gather(pool, input.products, a);
    if (attempts_++ == 0) pack_hessian(pool, a);
    damp(a);
    if (cholesky.factor()) break;
    damping_ = std::max(damping_ * kRaise, kLeastRaisedDamping);
    if (damping_ > kLargestDamping)
      fail(ErrorCode::argument, "hessian: not positive definite with ", damping_,
           " times the mean of its diagonal added; sums of x^T x expected");
  }
  pack_factor(pool, a);
}

void GptqFactor::order_columns(const GptqInput& input, const GptqOptions& options, int64_t group) {
  std::vector<float> diagonal(static_cast<size_t>(in_));
  double sum = 0;
  for (int64_t i = 0; i < in_; ++i) {
    const float value = diagonal[static_cast<size_t>(i)] = input.products[i * in_ + i];
    if (!std::isfinite(value))
      fail(ErrorCode::argument, "hessian: ", value, " on the diagonal at column ", i,
           ": the calibration states hold NaN, infinity or values too large to be squared there");
    dead_columns_ += value == 0;
    sum += static_cast<double>(value);
  }
  if (dead_columns_ < in_) mean_ = sum / static_cast<double>(in_ - dead_columns_);
  unit_ = input.samples > 0 ? mean_ * 2 / static_cast<double>(input.samples) : 0;

  order_.resize(static_cast<size_t>(in_));
  std::iota(order_.begin(), order_.end(), int64_t{0});
  const auto at = [&](int64_t column) { return diagonal[static_cast<size_t>(column)]; };
  if (options.act_order)
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) { return at(a) > at(b); });
  if (options.act_order && options.group_order && group > 0) {
    // The first column of a group in this order is its largest: that is the group's place, and the stable
    // sort leaves columns of a group as they are.
    const int64_t groups = (in_ + group - 1) / group;
    std::vector<int64_t> place(static_cast<size_t>(groups), -1);
    int64_t next = 0;
    for (const int64_t column : order_)
      if (int64_t& own = place[static_cast<size_t>(column / group)]; own < 0) own = next++;
    if (in_ % group != 0) place.back() = groups;
    std::stable_sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) {
      return place[static_cast<size_t>(a / group)] < place[static_cast<size_t>(b / group)];
    });
  }
  for (const int64_t column : order_) dead_.push_back(at(column) == 0);
}

void GptqFactor::cut_blocks(int64_t block_cols, int64_t group) {
  for (int64_t first = 0; first < in_; first += blocks_.back().cols) {
    int64_t cols = block_cols;
    if (group > 0 && group <= block_cols) cols = block_cols / group * group;
    if (group > block_cols) cols = std::min(block_cols, group - first % group);
    blocks_.push_back({.first = first,
                       .cols = std::min(cols, in_ - first),
                       .factor = nullptr,
                       .hessian = nullptr,
                       .upper = nullptr,
                       .upper_panels = nullptr,
                       .upper_panels_apart = 0});
  }
}

/// The upper triangle in the order of quantization, divided by the mean of the diagonal.
void GptqFactor::gather(ThreadPool& pool, const float* products, float* a) const {
  const double scale = 1 / mean_;
  pool.parallel_for(in_, [&](int64_t i) {
    const int64_t row = order_[static_cast<size_t>(i)];
    for (int64_t j = i; j < in_; ++j) {
      const int64_t col = order_[static_cast<size_t>(j)];
      const float product = products[std::min(row, col) * in_ + std::max(row, col)];
      a[i * in_ + j] = static_cast<float>(scale * static_cast<double>(product));
    }
  });
}

void GptqFactor::pack_hessian(ThreadPool& pool, const float* a) {
  pool.parallel_for(static_cast<int64_t>(blocks_.size()), [&](int64_t index) {
    const FactorBlock& block = blocks_[static_cast<size_t>(index)];
    const int64_t depth = block.first + block.cols;
    auto* const to = const_cast<float*>(block.hessian);
    pack_panels(a + block.first, in_, depth, block.cols, to);
    for (int64_t j = 0; j < block.cols; ++j) {
      float* const column = to + j / kPanelCols * block.hessian_apart() + j % kPanelCols;
      column[(block.first + j) * kPanelCols] *= 0.5f;
      for (int64_t k = block.first + j + 1; k < depth; ++k) column[k * kPanelCols] = 0;
    }
  });
}

void GptqFactor::damp(float* a) const {
  for (int64_t i = 0; i < in_; ++i) {
    float& diagonal = a[i * in_ + i];
    diagonal =
        static_cast<float>((dead_[static_cast<size_t>(i)] ? 1.0 : static_cast<double>(diagonal)) + damping_);
  }
}

void GptqFactor::pack_factor(ThreadPool& pool, const float* a) {
  pool.parallel_for(static_cast<int64_t>(blocks_.size()), [&](int64_t index) {
    const FactorBlock& block = blocks_[static_cast<size_t>(index)];
    pack_panels(a + block.first, in_, block.first, block.cols, const_cast<float*>(block.factor));
    const int64_t n = block.cols;
    std::vector<double> triangle(static_cast<size_t>(n * n));
    std::vector<double> inverse(triangle.size());
    const float* const corner = a + block.first * (in_ + 1);
    for (int64_t i = 0; i < n; ++i)
      std::copy(corner + i * in_ + i, corner + i * in_ + n, triangle.begin() + i * n + i);
    gptq_kernels().invert(triangle.data(), n, inverse.data());
    auto* const upper = const_cast<float*>(block.upper);
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = 0; j < n; ++j)
        upper[i * kBlockCols + j] = static_cast<float>(inverse[static_cast<size_t>(i * n + j)]);
    pack_panels(upper, kBlockCols, n, n, const_cast<float*>(block.upper_panels));
  });
}

}  // namespace quantaria::ops
