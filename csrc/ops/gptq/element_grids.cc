#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "numerics/e8m0.h"
#include "ops/bitpack/bitpack.h"
#include "ops/bitpack/kernels.h"
#include "ops/gptq/grids.h"
#include "ops/quantize/code_book_of.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

constexpr float kMost = std::numeric_limits<float>::max();

/// Updates can overflow where a weight is near the end of float32; NaN counts as its largest value.
float finite(float w) { return w < kMost ? std::max(w, -kMost) : kMost; }

/// Schemes whose elements are rounded by the row kernels of their quantizers: sixteen weights of a column at
/// a time, each by its own row's constants.
class ElementGrids : public GptqGrids {
 public:
  void quantize(const StripBlock& block, int64_t from, int64_t to, const StripGrids& grids) const final {
    for (int64_t i = from; i < to; ++i) {
      const int64_t grid = grids.grid_of_column[i] * kStripRows;
      uint8_t codes[kStripRows + kCodeSlack];
      alignas(64) float kept[kStripRows];
      round(block.weights + i * kStripRows, grids.scales + grid, grids.zeros + grid, codes, kept);
      std::memcpy(block.codes + i * kStripRows, codes, kStripRows);
      gptq_kernels().spread(block, i, kept);
    }
  }

 protected:
  /// Codes of sixteen weights and what they stand for. kCodeSlack codes more may be written.
  virtual void round(const float* w, const float* first, const float* second, uint8_t* codes,
                     float* kept) const = 0;
};

void absmax_of(const float* strip, int64_t cols, float* absmax) {
  alignas(64) float low[kStripRows];
  gptq_kernels().range(strip, cols, low, absmax);
  for (int64_t r = 0; r < kStripRows; ++r) absmax[r] = finite(std::max(absmax[r], -low[r]));
}

/// Blocks that start with a row are fitted when they are reached; those that span rows cannot be. Double
/// quantization needs all absmax values at once: weights are rounded by those that its codes decode to.
/// first: absmax.
class CodebookGrids final : public ElementGrids {
 public:
  CodebookGrids(const ConstMatrix& weight, const CodebookScheme& scheme, const GptqOptions& options,
                const CodebookStored& to, const Scratch& scratch)
      : scheme_(checked(scheme, weight.rows * weight.cols)),
        to_(to),
        rows_(weight.rows),
        in_(weight.cols),
        by_row_(weight.cols % scheme_.block_size == 0),
        fitted_(by_row_ && !scheme_.double_quant && !options.act_order && !options.static_groups),
        codes_(scratch(rows_ * in_ + kPackSlack)) {
    std::memset(codes_->data() + rows_ * in_, 0, kPackSlack);
  }

  int64_t fitted_group() const override { return fitted_ ? scheme_.block_size : 0; }
  int64_t count() const override { return by_row_ ? in_ / scheme_.block_size : in_; }
  int64_t grid_of(int64_t, int64_t column) const override {
    return by_row_ ? column / scheme_.block_size : column;
  }

  void prepare(ThreadPool& pool, const ConstMatrix& weight) override {
    quantize_codebook(pool, weight, scheme_, to_);
    if (!scheme_.double_quant) return;
    decoded_.resize(static_cast<size_t>(block_count(scheme_, rows_, in_)));
    decode_nested_absmax(to_.absmax_codes, to_.absmax_scales, *to_.absmax_offset,
                         static_cast<int64_t>(decoded_.size()), decoded_.data());
  }
  void load(int64_t row, int64_t grid, float* first, float* second) const override {
    const int64_t column = by_row_ ? grid * scheme_.block_size : grid;
    const float* const absmax = scheme_.double_quant ? decoded_.data() : to_.absmax;
    *first = absmax[(row * in_ + column) / scheme_.block_size];
    *second = 0;
  }
  void fit(int64_t, const float* strip, int64_t cols, float* first, float* second) const override {
    absmax_of(strip, cols, first);
    std::fill_n(second, kStripRows, 0.0f);
  }

  void write(int64_t row, const uint8_t* codes, const float* first, const float*) const override {
    std::memcpy(codes_->data() + row * in_, codes, static_cast<size_t>(in_));
    if (!fitted_) return;
    for (int64_t g = 0; g < count(); ++g) to_.absmax[row * count() + g] = first[g * kStripRows];
  }
  /// Rows may share a packed word.
  void finish(ThreadPool& pool) const override {
    constexpr int64_t kPiece = int64_t{1} << 16;
    const int64_t elements = rows_ * in_;
    const int bits = bits_of(scheme_.book);
    const auto* const codes = reinterpret_cast<const uint8_t*>(codes_->data());
    pool.parallel_for((elements + kPiece - 1) / kPiece, [&](int64_t piece) {
      const int64_t first = piece * kPiece;
      bit_kernels().pack[bits](codes + first, std::min(kPiece, elements - first),
                               to_.packed + first * bits / 8);
    });
  }

 private:
  void round(const float* w, const float* absmax, const float*, uint8_t* codes, float* kept) const override {
    // Weights may have grown beyond the block's absmax, which the ends of the book stand for.
    alignas(64) float clamped[kStripRows];
    for (int64_t r = 0; r < kStripRows; ++r) {
      const float most = std::abs(absmax[r]);
      clamped[r] = std::max(-most, std::min(most, finite(w[r])));
    }
    const CodebookKernels& kernels = codebook_kernels();
    if (bits_of(scheme_.book) == 8) {
      kernels.encode8(clamped, kStripRows, 1, absmax, codes);
      return kernels.decode8(codes, kStripRows, 1, absmax, kept);
    }
    kernels.encode4(clamped, kStripRows, 1, absmax, table_of(scheme_.book), codes, nullptr);
    kernels.decode4(codes, kStripRows, 1, absmax, table_of(scheme_.book), kept);
  }

  CodebookScheme scheme_;
  CodebookStored to_;
  int64_t rows_;
  int64_t in_;
  bool by_row_;
  bool fitted_;
  std::vector<float> decoded_;
  std::shared_ptr<Storage> codes_;  // [rows, in]
};

/// first: scale.
class Fp8Grids final : public ElementGrids {
 public:
  Fp8Grids(const ConstMatrix& weight, const Fp8Scheme& scheme, const Fp8Stored& to)
      : scheme_(scheme), to_(to), in_(weight.cols) {}

  int64_t fitted_group() const override { return 0; }
  int64_t count() const override { return 1; }
  int64_t grid_of(int64_t, int64_t) const override { return 0; }
  void prepare(ThreadPool& pool, const ConstMatrix& weight) override {
    quantize_fp8(pool, weight, scheme_, to_.packed, to_.scales);
  }
  void load(int64_t row, int64_t, float* first, float* second) const override {
    *first = to_.scales[scheme_.per_row ? row : 0];
    *second = 0;
  }
  void fit(int64_t, const float*, int64_t, float*, float*) const override {}
  void write(int64_t row, const uint8_t* codes, const float*, const float*) const override {
    bit_kernels().pack[8](codes, in_, to_.packed + row * packed_row_bytes(in_, 8));
  }

 private:
  void round(const float* w, const float* scale, const float*, uint8_t* codes, float* kept) const override {
    const auto format = static_cast<size_t>(scheme_.format);
    for (int64_t r = 0; r < kStripRows; ++r) {
      const float value = finite(w[r]);
      small_float_kernels().encode_fp8[format](&value, 1, scale[r], codes + r);
      small_float_kernels().decode_fp8[format](codes + r, 1, scale[r], kept + r);
    }
  }

  Fp8Scheme scheme_;
  Fp8Stored to_;
  int64_t in_;
};

/// first: the scale byte, or kZeroBlock; second: the row's factor, which round-to-nearest has searched for.
class MxGrids final : public ElementGrids {
 public:
  MxGrids(const ConstMatrix& weight, const MxScheme& scheme, const GptqOptions& options, const MxStored& to)
      : scheme_(scheme),
        to_(to),
        rows_(weight.rows),
        in_(weight.cols),
        fitted_(!options.act_order && !options.static_groups) {}

  int64_t fitted_group() const override { return fitted_ ? kMxBlock : 0; }
  int64_t count() const override { return (in_ + kMxBlock - 1) / kMxBlock; }
  int64_t grid_of(int64_t, int64_t column) const override { return column / kMxBlock; }
  bool needs_weight() const override { return !fitted_ || scheme_.pre_scale; }
  void prepare(ThreadPool& pool, const ConstMatrix& weight) override {
    quantize_mx(pool, weight, scheme_, to_.packed, to_.scales, to_.pre_scale);
  }
  void load(int64_t row, int64_t grid, float* first, float* second) const override {
    const uint8_t scale = to_.scales[row * count() + grid];
    *first = scale == 0 && all_zero(row, grid) ? kZeroBlock : static_cast<float>(scale);
    *second = pre_scale(row);
  }
  void fit(int64_t row, const float* strip, int64_t cols, float* first, float* second) const override {
    alignas(64) float absmax[kStripRows];
    absmax_of(strip, cols, absmax);
    for (int64_t r = 0; r < kStripRows; ++r) {
      second[r] = pre_scale(std::min(row + r, rows_ - 1));
      const float scaled = absmax[r] * second[r];
      first[r] = scaled == 0 ? kZeroBlock : static_cast<float>(mx_scale_of(scheme_.element, scaled));
    }
  }
  void write(int64_t row, const uint8_t* codes, const float* first, const float*) const override {
    const int bits = mx_element_bits(scheme_.element);
    bit_kernels().pack[bits](codes, in_, to_.packed + row * packed_row_bytes(in_, bits));
    if (!fitted_) return;
    for (int64_t b = 0; b < count(); ++b)
      to_.scales[row * count() + b] = static_cast<uint8_t>(std::max(0.0f, first[b * kStripRows]));
  }

 private:
  /// A block of zeros stays one, whatever the errors of its own columns would make of it: its scale 2^-127
  /// could not hold them.
  static constexpr float kZeroBlock = -1;

  /// Whether round-to-nearest, whose codes are there until write(), left nothing of a block.
  bool all_zero(int64_t row, int64_t grid) const {
    const int bits = mx_element_bits(scheme_.element);
    const int64_t row_bytes = packed_row_bytes(in_, bits);
    const int64_t first = grid * kMxBlock * bits / 8;
    const uint8_t* const codes = to_.packed + row * row_bytes;
    return std::all_of(codes + first, codes + std::min(row_bytes, first + kMxBlock * bits / 8),
                       [](uint8_t byte) { return byte == 0; });
  }

  float pre_scale(int64_t row) const { return scheme_.pre_scale ? to_.pre_scale[row] : 1.0f; }

  void round(const float* w, const float* scale, const float* pre_scale, uint8_t* codes,
             float* kept) const override {
    const auto element = static_cast<size_t>(scheme_.element);
    const auto encode =
        small_float_kernels().encode_mx[element].by_rounding[static_cast<size_t>(scheme_.rounding)];
    for (int64_t r = 0; r < kStripRows; ++r) {
      codes[r] = 0;
      kept[r] = 0;
      if (scale[r] == kZeroBlock) continue;
      const auto byte = static_cast<uint8_t>(scale[r]);
      const float value = finite(w[r]) * pre_scale[r];
      encode(&value, 1, &byte, codes + r);
      small_float_kernels().decode_mx[element](codes + r, 1, &byte, kept + r);
      kept[r] /= pre_scale[r];
    }
  }

  MxScheme scheme_;
  MxStored to_;
  int64_t rows_;
  int64_t in_;
  bool fitted_;
};

}  // namespace

std::unique_ptr<GptqGrids> codebook_grids(const ConstMatrix& weight, const CodebookScheme& scheme,
                                          const GptqOptions& options, const CodebookStored& to,
                                          const Scratch& scratch) {
  return std::make_unique<CodebookGrids>(weight, scheme, options, to, scratch);
}

std::unique_ptr<GptqGrids> fp8_grids(const ConstMatrix& weight, const Fp8Scheme& scheme,
                                     const Fp8Stored& to) {
  return std::make_unique<Fp8Grids>(weight, scheme, to);
}

std::unique_ptr<GptqGrids> mx_grids(const ConstMatrix& weight, const MxScheme& scheme,
                                    const GptqOptions& options, const MxStored& to) {
  return std::make_unique<MxGrids>(weight, scheme, options, to);
}

}  // namespace quantaria::ops
