#include <algorithm>
#include <limits>

#include "ops/bitpack/bitpack.h"
#include "ops/bitpack/kernels.h"
#include "ops/gptq/grids.h"
#include "ops/quantize/int_grid.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// first: scale, second: zero.
class IntGrids final : public GptqGrids {
 public:
  IntGrids(const ConstMatrix& weight, const IntScheme& scheme, const GptqOptions& options,
           const IntStored& to)
      : scheme_(scheme),
        limits_(limits_of(scheme)),
        to_(to),
        in_(weight.cols),
        shape_(constants_shape(scheme, weight.rows, weight.cols)),
        fitted_group_(scheme.granularity == Granularity::group && !options.static_groups ? scheme.group_size
                                                                                         : 0) {}

  int64_t fitted_group() const override { return fitted_group_; }
  int64_t count() const override { return shape_.cols; }
  int64_t grid_of(int64_t position, int64_t column) const override {
    if (scheme_.granularity == Granularity::column) return column;
    if (scheme_.granularity != Granularity::group) return 0;
    return fitted_group_ > 0 ? position / fitted_group_ : column / scheme_.group_size;
  }

  void prepare(ThreadPool& pool, const ConstMatrix& weight) override {
    quantize_int(pool, weight, scheme_, to_);
  }
  void load(int64_t row, int64_t grid, float* first, float* second) const override {
    const int64_t at = (shape_.rows == 1 ? 0 : row) * shape_.cols + grid;
    *first = to_.scales[at];
    *second = to_.zeros == nullptr ? 0.0f : static_cast<float>(to_.zeros[at]);
  }
  void fit(int64_t row, const float* strip, int64_t cols, float* first, float* second) const override;

  void quantize(const StripBlock& block, int64_t from, int64_t to, const StripGrids& grids) const override {
    gptq_kernels().quantize_columns(block, from, to, grids, limits_);
  }

  void write(int64_t row, const uint8_t* codes, const float* first, const float* second) const override {
    bit_kernels().pack[scheme_.bits](codes, in_, to_.packed + row * packed_row_bytes(in_, scheme_.bits));
    if (fitted_group_ == 0) return;
    for (int64_t g = 0; g < shape_.cols; ++g) {
      to_.scales[row * shape_.cols + g] = first[g * kStripRows];
      if (to_.zeros != nullptr)
        to_.zeros[row * shape_.cols + g] = static_cast<int32_t>(second[g * kStripRows]);
    }
  }

 private:
  IntScheme scheme_;
  IntLimits limits_;
  IntStored to_;
  int64_t in_;
  ConstantsShape shape_;
  int64_t fitted_group_;
};

void IntGrids::fit(int64_t, const float* strip, int64_t cols, float* first, float* second) const {
  alignas(64) float low[kStripRows];
  alignas(64) float high[kStripRows];
  gptq_kernels().range(strip, cols, low, high);
  float* const row = scheme_.mse_search ? thread_buffer<float>(Slot::strided_row, cols) : nullptr;
  for (int64_t r = 0; r < kStripRows; ++r) {
    // Updates can overflow where a weight is near the end of float32.
    constexpr float kMost = std::numeric_limits<float>::max();
    float least = std::max(low[r], -kMost);
    float most = std::min(high[r], kMost);
    if (scheme_.symmetric) most = std::max(-least, most), least = -most;
    IntGrid fitted;
    if (scheme_.mse_search) {
      for (int64_t j = 0; j < cols; ++j) row[j] = strip[j * kStripRows + r];
      fitted = search_grid(scheme_, row, cols, least, most);
    } else {
      fitted = fit_grid(scheme_, least, most);
    }
    first[r] = fitted.scale;
    second[r] = static_cast<float>(fitted.zero);
  }
}

}  // namespace

std::unique_ptr<GptqGrids> int_grids(const ConstMatrix& weight, const IntScheme& scheme,
                                     const GptqOptions& options, const IntStored& to) {
  return std::make_unique<IntGrids>(weight, scheme, options, to);
}

}  // namespace quantaria::ops
