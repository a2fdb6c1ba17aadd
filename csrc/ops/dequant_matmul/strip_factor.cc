#include "ops/dequant_matmul/strip_factor.h"

#include <algorithm>
#include <utility>

#include "ops/gemm/dense_factor.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

class StripFactor final : public Factor {
 public:
  StripFactor(int64_t out, int64_t in, ReadStrip read, bool bfloat16)
      : out_(out),
        in_(in),
        read_(std::move(read)),
        bfloat16_(bfloat16),
        shape_(strip(nullptr, 0), bfloat16) {}

  int64_t depth() const override { return in_; }
  int64_t columns() const override { return out_; }
  int panel_columns() const override { return shape_.panel_columns(); }
  RowFormat row_format(int64_t rows) const override { return shape_.row_format(rows); }

  void multiply(const RowPanels& a, int64_t rows, int64_t panel, float* c) const override {
    const int64_t first = panel * panel_columns();
    const int64_t count = std::min<int64_t>(panel_columns(), out_ - first);
    float* const values = thread_buffer<float>(Slot::dequantized, count * in_);
    DenseFactor(strip(read_(first, count, values), count), bfloat16_).multiply(a, rows, 0, c);
  }

 private:
  ConstMatrix strip(const float* values, int64_t rows) const {
    return {reinterpret_cast<const std::byte*>(values), DType::float32, in_, rows, 1, in_};
  }

  const int64_t out_;
  const int64_t in_;
  const ReadStrip read_;
  const bool bfloat16_;
  const DenseFactor shape_;  // of any panel
};

}  // namespace

std::unique_ptr<Factor> make_strip_factor(int64_t out, int64_t in, ReadStrip read, bool bfloat16_products) {
  return std::make_unique<StripFactor>(out, in, std::move(read), bfloat16_products);
}

}  // namespace quantaria::ops
