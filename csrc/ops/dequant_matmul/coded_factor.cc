#include "ops/dequant_matmul/coded_factor.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// A run of columns without a border inside: whole groups, or a part of one.
struct Run {
  int64_t first;  // column
  int64_t group;
  Span span;
};

/// Calls body for the runs that make up columns [first, end); `first` starts a unit.
template <class Body>
void for_each_run(const CodedWeight& w, int64_t first, int64_t end, const Body& body) {
  const int64_t codes = unit_codes(w.bits);
  end = std::min(end, w.in);
  while (first < end) {
    const int64_t group = first / w.group;
    const int64_t group_end = std::min((group + 1) * w.group, w.in);
    if (first == group * w.group && group_end <= end && group_end - first == w.group) {
      const int64_t whole = (end - first) / w.group;
      body(Run{first, group, {w.table.data(), whole, (w.group + codes - 1) / codes}});
      first += whole * w.group;
    } else {
      const int64_t stop = std::min(group_end, end);
      body(Run{first, group, {w.table.data(), 1, (stop - first + codes - 1) / codes}});
      first = stop;
    }
  }
}

/// The part of a tile where a run begins.
TileView from_run(const CodedWeight& w, const TileView& tile, const Run& run) {
  return tile.from(run.first / unit_codes(w.bits) * unit_words(w.bits) * kTileRows, run.group);
}

void prefetch(const void* from, int64_t bytes) {
  constexpr int64_t kLine = 64;
  for (int64_t at = 0; at < bytes; at += kLine) __builtin_prefetch(static_cast<const char*>(from) + at, 0, 2);
}

class CodedFactor : public Factor {
 public:
  CodedFactor(CodedWeight weight, int tiles) : weight_(std::move(weight)), tiles_(tiles) {}
  int64_t depth() const override { return weight_.in; }
  int64_t columns() const override { return weight_.out; }
  int panel_columns() const override { return tiles_ * kTileRows; }

 protected:
  /// The panel's tiles; past the last one, that one again.
  void views(int64_t panel, TileView (&tiles)[kMostTiles]) const {
    for (int t = 0; t < tiles_; ++t) {
      const int64_t tile = panel * tiles_ + t;
      tiles[t] = tile < weight_.tiles() ? view_of(weight_, tile, t) : tiles[0];
    }
  }

  void multiply_few(FewRows* kernel, int per_step, const RowPanels& a, int64_t panel,
                    const TileView (&tiles)[kMostTiles], float* c) const {
    const int64_t rows = a.rows();
    prefetch_first(panel + 1);
    bool accumulate = false;
    if (weight_.in == 0) std::fill_n(c, rows * panel_columns(), 0.0f);
    for_each_run(weight_, 0, weight_.in, [&](const Run& run) {
      TileView parts[kMostTiles];
      for (int t = 0; t < tiles_; ++t) parts[t] = from_run(weight_, tiles[t], run);
      const int64_t word = run.first / per_step * rows;
      kernel(
          parts, run.span,
          {a.words(0) + 4 * word, a.sums(0) + run.group * rows, a.scales(0) + run.group * rows, accumulate},
          c);
      accumulate = true;
    });
  }

  const CodedWeight weight_;
  const int tiles_;

 private:
  /// Asks for where the tiles of a panel begin. Kernels ask beyond the end of a tile for the one behind it,
  /// which is the next panel's first only.
  void prefetch_first(int64_t panel) const {
    const int64_t end = std::min((panel + 1) * tiles_, weight_.tiles());
    for (int64_t tile = panel * tiles_; tile < end; ++tile) {
      if (tile > panel * tiles_)
        prefetch(weight_.words + tile * kTileRows * weight_.words_per_row, kWordsAhead * 4);
      if (weight_.scales.form == GroupScales::Form::tiled)
        prefetch(scales_of_tile(weight_, tile), kScaleBytesAhead);
    }
  }
};

/// float32 and bfloat16 products.
class FloatFactor final : public CodedFactor {
 public:
  FloatFactor(CodedWeight weight, bool bfloat16)
      : CodedFactor(std::move(weight), dequant_kernels().tiles),
        bfloat16_(bfloat16),
        pairs_(bfloat16 ? pair_kernels() : nullptr),
        micro_(bfloat16 ? bfloat16_tiles() : float32_tiles()) {}

  RowFormat row_format(int64_t rows) const override {
    RowFormat format;
    format.operand = micro_.operand;
    format.rounded = bfloat16_;
    format.tile_rows = micro_.rows;
    if (few(rows) == nullptr) return format;
    format.multiple = unit_codes(weight_.bits);
    if (pairs_ != nullptr) {
      format.order = pair_order(weight_.decoding, weight_.bits);
      if (weight_.zeros != nullptr) format.group = weight_.group;
    }
    return format;
  }

  void multiply(const RowPanels& a, int64_t rows, int64_t panel, float* c) const override {
    TileView tiles[kMostTiles];
    views(panel, tiles);
    if (FewRows* const kernel = few(a.rows()); kernel != nullptr)
      return multiply_few(kernel, values_per_step(micro_.operand), a, panel, tiles, c);
    const auto decode = [&](int64_t step, int64_t steps) { return decode_panel(tiles, step, steps); };
    multiply_panel(micro_, a, rows, decode, c);
  }

 private:
  FewRows* few(int64_t rows) const {
    if (rows < 1 || rows > std::min(kMostFewRows, micro_.rows)) return nullptr;
    if (pairs_ == nullptr && weight_.integer && weight_.bits == 4)
      return dequant_kernels().few_rows_of_int4[rows - 1];
    const auto& by_rows = pairs_ != nullptr ? pairs_->few_rows : dequant_kernels().few_rows;
    return by_rows[rows - 1][static_cast<int>(weight_.decoding)][weight_.bits];
  }

  DecodePanel* panel_decoder() const {
    if (pairs_ != nullptr && weight_.integer && weight_.bits == 4) return pairs_->decode_int4;
    const auto& kernels = pairs_ != nullptr ? pairs_->decode
                          : bfloat16_       ? dequant_kernels().decode_rounded
                                            : dequant_kernels().decode_float32;
    return kernels[static_cast<int>(weight_.decoding)][weight_.bits];
  }

  const void* decode_panel(const TileView (&tiles)[kMostTiles], int64_t step, int64_t steps) const {
    const int per_step = values_per_step(micro_.operand);
    const int64_t columns = panel_columns();
    auto* const words = thread_buffer<uint32_t>(Slot::right_panel, (steps + kSlackSteps) * columns);
    DecodePanel* const decode = panel_decoder();
    const int64_t first = step * per_step;
    for_each_run(weight_, first, first + steps * per_step, [&](const Run& run) {
      for (int t = 0; t < tiles_; ++t)
        decode(from_run(weight_, tiles[t], run), run.span,
               words + (run.first - first) / per_step * columns + t * kTileRows, columns);
    });
    // The rows of a are padded with zeros, which must not meet what an earlier panel left.
    const int64_t made = std::max<int64_t>(0, (weight_.in - first + per_step - 1) / per_step);
    if (made < steps)
      std::memset(words + made * columns, 0, static_cast<size_t>((steps - made) * columns * 4));
    return words;
  }

  static constexpr int64_t kSlackSteps = 32;  // a unit of codes may end past the panel

  const bool bfloat16_;
  const PairKernels* const pairs_;
  const FloatTiles& micro_;
};

/// Codes as bytes times activations quantized to int8.
class Int8Factor final : public CodedFactor {
 public:
  explicit Int8Factor(CodedWeight weight)
      : CodedFactor(std::move(weight), byte_kernels().tiles), many_(byte_rows()) {}

  RowFormat row_format(int64_t rows) const override {
    RowFormat format;
    format.operand = Operand::int8;
    format.tile_rows = few(rows) != nullptr ? kMostFewRows : many_.rows;
    format.order = byte_order(weight_.bits);
    format.group = weight_.group;
    return format;
  }

  void multiply(const RowPanels& a, int64_t rows, int64_t panel, float* c) const override {
    FewRows* const kernel = few(a.rows());
    TileView tiles[kMostTiles];
    views(panel, tiles);
    if (kernel != nullptr) return multiply_few(kernel, 4, a, panel, tiles, c);
    multiply_many(a, rows, tiles, c);
  }

 private:
  FewRows* few(int64_t rows) const {
    const FewByteRows* const kernels = few_byte_rows();
    if (kernels == nullptr || rows < 1 || rows > kMostFewRows) return nullptr;
    return kernels->multiply[rows - 1][weight_.bits];
  }

  /// Whole groups at a time, as many as stay in the second-level cache while the rows pass over them, at
  /// least one.
  void multiply_many(const RowPanels& a, int64_t rows, const TileView (&tiles)[kMostTiles], float* c) const {
    constexpr int64_t kCodes = 65536;  // of a tile
    const int64_t at_once = std::max<int64_t>(1, kCodes / (kTileRows * weight_.group)) * weight_.group;
    if (weight_.in == 0) std::fill_n(c, rows * panel_columns(), 0.0f);
    for (int64_t first = 0; first < weight_.in; first += at_once)
      for_each_run(weight_, first, first + at_once, [&](const Run& run) {
        const ByteRun bytes = bytes_of(tiles, run);
        for (int64_t tile = 0; tile < a.tiles() && a.first_row(tile) < rows; ++tile) {
          const int tile_rows = a.rows_of(tile);
          const FewRowsInput input{a.words(tile) + run.first * tile_rows,
                                   a.sums(tile) + run.group * tile_rows,
                                   a.scales(tile) + run.group * tile_rows, run.first > 0};
          bytes.kernels[tile_rows - 1](bytes.tiles, bytes.span, input,
                                       c + a.first_row(tile) * panel_columns());
        }
      });
  }

  /// A run as kernels take it.
  struct ByteRun {
    FewRows* const* kernels;
    Span span;
    TileView tiles[kMostTiles];
  };

  ByteRun bytes_of(const TileView (&tiles)[kMostTiles], const Run& run) const {
    ByteRun bytes{weight_.bits == 4 ? many_.of_nibbles : many_.of_bytes, run.span, {}};
    for (int t = 0; t < tiles_; ++t) bytes.tiles[t] = from_run(weight_, tiles[t], run);
    if (weight_.bits == 4 || weight_.bits == 8) return bytes;
    bytes.span.units_per_group *= unit_codes(weight_.bits) / unit_codes(8);
    const int64_t words = bytes.span.groups * bytes.span.units_per_group * kTileRows;
    auto* to = thread_buffer<uint32_t>(Slot::right_panel, tiles_ * words);
    for (int t = 0; t < tiles_; ++t, to += words) {
      byte_kernels().decode[weight_.bits](bytes.tiles[t], run.span, to, kTileRows);
      bytes.tiles[t].words = to;
    }
    return bytes;
  }

  const ByteRows& many_;
};

}  // namespace

std::unique_ptr<Factor> make_coded_factor(CodedWeight weight, Operand products) {
  if (products == Operand::int8) return std::make_unique<Int8Factor>(std::move(weight));
  return std::make_unique<FloatFactor>(std::move(weight), products == Operand::bfloat16);
}

}  // namespace quantaria::ops
