#include <limits>
#include <memory>

#include "ops/bitpack/bitpack.h"
#include "ops/gptq/columns.cuh"
#include "ops/gptq/gptq_cuda.h"
#include "ops/gptq/solver_cuda.h"
#include "ops/quantize/code_book_of.h"

// Schemes other than integers (element_grids.cc is the CPU's): one problem at a time.
namespace quantaria::ops {
namespace {

constexpr float kMost = std::numeric_limits<float>::max();

/// Updates can overflow where a weight is near the end of float32; NaN counts as its largest value.
__device__ float finite(float w) { return w < kMost ? (w < -kMost ? -kMost : w) : kMost; }

template <class Value>
__device__ float absmax_of(int64_t n, const Value& value) {
  const Ends ends = ends_of(n, value);
  return finite(-ends.low > ends.high ? -ends.low : ends.high);
}

/// first: absmax.
template <class Book>
struct BookColumns {
  Book book;
  int64_t in;
  int64_t block;
  bool fitted;
  bool by_row;  // blocks start with a row
  float* absmax;

  constexpr int64_t fitted_group() const { return fitted ? block : 0; }
  __device__ int64_t grid_of(int64_t, int64_t column) const { return by_row ? column / block : column; }
  __device__ Grid load(int, int64_t row, int64_t grid) const {
    const int64_t column = by_row ? grid * block : grid;
    return {simt::load(absmax + (row * in + column) / block), 0.0f};
  }
  __device__ void store(int, int64_t row, int64_t grid, const Grid& fitted_grid) const {
    simt::store(absmax + row * (in / block) + grid, fitted_grid.first);
  }
  template <class Value>
  __device__ Grid fit(int, int64_t, int64_t n, const Value& value) const {
    return {absmax_of(n, value), 0.0f};
  }
  __device__ Rounded round(const Grid& grid, float w) const {
    // Weights may have grown beyond the block's absmax, which the ends of the book stand for.
    const float most = fabsf(grid.first);
    const float value = finite(w);
    const float below = value < most ? value : most;
    return round_book(book, grid.first, below > -most ? below : -most);
  }
};

/// first: scale.
struct Fp8Columns {
  Float8 format;
  bool per_row;
  const float* scales;

  constexpr int64_t fitted_group() const { return 0; }
  __device__ int64_t grid_of(int64_t, int64_t) const { return 0; }
  __device__ Grid load(int, int64_t row, int64_t) const {
    return {simt::load(scales + (per_row ? row : 0)), 0.0f};
  }
  __device__ void store(int, int64_t, int64_t, const Grid&) const {}
  template <class Value>
  __device__ Grid fit(int, int64_t, int64_t, const Value&) const {
    return {1.0f, 0.0f};
  }
  __device__ Rounded round(const Grid& grid, float w) const {
    return round_fp8(format, grid.first, finite(w));
  }
};

/// A block of zeros stays one, whatever the errors of its own columns would make of it: its scale 2^-127
/// could not hold them.
constexpr float kZeroBlock = -1;

/// first: the scale byte, or kZeroBlock; second: the row's factor, which round-to-nearest has searched for.
struct MxColumns {
  MxElement element;
  MxRounding rounding;
  int bits;
  int largest_exponent;
  bool fitted;
  int64_t row_bytes;
  int64_t blocks;  // of a row
  const uint8_t* packed;
  uint8_t* scales;
  const float* pre_scale;  // or null

  constexpr int64_t fitted_group() const { return fitted ? kMxBlock : 0; }
  __device__ int64_t grid_of(int64_t, int64_t column) const { return column / kMxBlock; }
  __device__ float factor(int64_t row) const {
    return pre_scale == nullptr ? 1.0f : simt::load(pre_scale + row);
  }
  __device__ Grid load(int, int64_t row, int64_t grid) const {
    const uint8_t scale = simt::load(scales + row * blocks + grid);
    return {scale == 0 && all_zero(row, grid) ? kZeroBlock : static_cast<float>(scale), factor(row)};
  }
  __device__ void store(int, int64_t row, int64_t grid, const Grid& fitted_grid) const {
    const float scale = fitted_grid.first < 0 ? 0.0f : fitted_grid.first;
    simt::store(scales + row * blocks + grid, static_cast<uint8_t>(scale));
  }
  template <class Value>
  __device__ Grid fit(int, int64_t row, int64_t n, const Value& value) const {
    const float scaled = absmax_of(n, value) * factor(row);
    return {scaled == 0 ? kZeroBlock : static_cast<float>(numerics::e8m0_of_absmax(scaled, largest_exponent)),
            factor(row)};
  }
  __device__ Rounded round(const Grid& grid, float w) const {
    if (grid.first == kZeroBlock) return {0, 0.0f};
    const Rounded rounded =
        round_mx(element, rounding, static_cast<uint8_t>(grid.first), finite(w) * grid.second);
    return {rounded.code, rounded.kept / grid.second};
  }

 private:
  /// Whether round-to-nearest, whose codes are there until the run's own are packed, left nothing of a block.
  __device__ bool all_zero(int64_t row, int64_t grid) const {
    const int64_t first = grid * kMxBlock * bits / 8;
    const int64_t end = first + kMxBlock * bits / 8;
    for (int64_t byte = first; byte < (end < row_bytes ? end : row_bytes); ++byte)
      if (simt::load(packed + row * row_bytes + byte) != 0) return false;
    return true;
  }
};

template <class Rule>
void quantize_and_pack(const GptqQueue& queue, const GptqRun& run, const BlockCut& cut, const Rule& rule,
                       uint8_t* packed, int bits, bool as_one) {
  quantize_all_columns(queue.stream, run, cut, rule);
  pack_codes(queue.stream, run, {{packed}}, bits, as_one);
}

template <class Book>
GptqReport quantize_by_book(const GptqQueue& queue, const GptqInput& input, const CodebookScheme& asked,
                            const CodebookStored& to, const GptqOptions& options, const Book& book) {
  const int64_t rows = input.weight.rows;
  const int64_t in = input.weight.cols;
  const CodebookScheme scheme = checked(asked, rows * in);
  const bool by_row = in % scheme.block_size == 0;
  const bool fitted = by_row && !scheme.double_quant && !options.act_order && !options.static_groups;
  std::shared_ptr<Storage> decoded;
  float* absmax = to.absmax;
  if (scheme.double_quant) {
    decoded = queue.scratch(block_count(scheme, rows, in) * static_cast<int64_t>(sizeof(float)));
    absmax = reinterpret_cast<float*>(decoded->data());
  }
  const BookColumns<Book> rule{book, in, scheme.block_size, fitted, by_row, absmax};
  const auto round = [&](size_t, const QuantizeCall& call) { quantize_codebook_cuda(call, scheme, to); };
  const auto quantize = [&](const GptqRun& run, const BlockCut& cut, std::span<const size_t>) {
    if (scheme.double_quant)
      decode_nested_absmax_cuda(queue.stream, to.absmax_codes, to.absmax_scales, to.absmax_offset,
                                block_count(scheme, rows, in), absmax);
    quantize_and_pack(queue, run, cut, rule, to.packed, bits_of(scheme.book), true);
  };
  const int64_t workspace = quantize_codebook_workspace(scheme, rows, in);
  return GptqSolver(queue, {input}, options, {rule.fitted_group(), !fitted, workspace, round, quantize})
      .solve()
      .front();
}

}  // namespace

GptqReport quantize_codebook_gptq_cuda(const GptqQueue& queue, const GptqInput& input,
                                       const CodebookScheme& scheme, const CodebookStored& to,
                                       const GptqOptions& options) {
  if (scheme.book == Codebook::dynamic8)
    return quantize_by_book(queue, input, scheme, to, options, numerics::kDynamic8);
  return quantize_by_book(queue, input, scheme, to, options, table_of(scheme.book));
}

GptqReport quantize_fp8_gptq_cuda(const GptqQueue& queue, const GptqInput& input, const Fp8Scheme& scheme,
                                  const Fp8Stored& to, const GptqOptions& options) {
  const Fp8Columns rule{scheme.format, scheme.per_row, to.scales};
  const auto round = [&](size_t, const QuantizeCall& call) {
    quantize_fp8_cuda(call, scheme, to.packed, to.scales);
  };
  const auto quantize = [&](const GptqRun& run, const BlockCut& cut, std::span<const size_t>) {
    quantize_and_pack(queue, run, cut, rule, to.packed, 8, false);
  };
  const int64_t workspace = quantize_rows_workspace(input.weight.rows, input.weight.cols);
  return GptqSolver(queue, {input}, options, {0, true, workspace, round, quantize}).solve().front();
}

GptqReport quantize_mx_gptq_cuda(const GptqQueue& queue, const GptqInput& input, const MxScheme& scheme,
                                 const MxStored& to, const GptqOptions& options) {
  const int64_t in = input.weight.cols;
  const int bits = mx_element_bits(scheme.element);
  const bool fitted = !options.act_order && !options.static_groups;
  const bool needs_weight = !fitted || scheme.pre_scale;
  const MxColumns rule{.element = scheme.element,
                       .rounding = scheme.rounding,
                       .bits = bits,
                       .largest_exponent = 127 - mx_scale_of(scheme.element, 1.0f),
                       .fitted = fitted,
                       .row_bytes = packed_row_bytes(in, bits),
                       .blocks = (in + kMxBlock - 1) / kMxBlock,
                       .packed = to.packed,
                       .scales = to.scales,
                       .pre_scale = to.pre_scale};
  const auto round = [&](size_t, const QuantizeCall& call) {
    quantize_mx_cuda(call, scheme, to.packed, to.scales, to.pre_scale);
  };
  const auto quantize = [&](const GptqRun& run, const BlockCut& cut, std::span<const size_t>) {
    quantize_and_pack(queue, run, cut, rule, to.packed, bits, false);
  };
  const int64_t workspace = quantize_rows_workspace(input.weight.rows, in);
  return GptqSolver(queue, {input}, options, {rule.fitted_group(), needs_weight, workspace, round, quantize})
      .solve()
      .front();
}

}  // namespace quantaria::ops
