#pragma once

#include <cstdint>

#include "ops/gemm/row_panels.h"
#include "ops/gemm/tile.h"

/// The kernels of products with quantized weights, compiled per instruction set. They read a weight in tiles
/// of sixteen rows (weight_tiles.h), which are columns of the product.
namespace quantaria::ops {

inline constexpr int kTileRows = 16;
inline constexpr int kMostTiles = 2;    // side by side in a panel
inline constexpr int kMostFewRows = 4;  // of the left factor that are multiplied without a decoded panel

/// How far ahead of their use products of few rows ask for a tile's words and scales: what a core reads while
/// a line is on its way.
inline constexpr int kWordsAhead = 768;
inline constexpr int kScaleBytesAhead = 2048;

/// How codes turn into values before zero point and scale.
enum class Decoding : uint8_t { permutation, conversion, gather };
inline constexpr int kDecodings = 3;
inline constexpr int kMostBits = 8;

/// What scales lie in: in 16 bits where that loses nothing (narrow_scales.h).
enum class ScaleType : uint8_t { float32, float16, bfloat16 };
constexpr int64_t size_of(ScaleType type) { return type == ScaleType::float32 ? 4 : 2; }

/// One tile of a weight, or a run of whole groups of it. value = (table[code] - zero) * scale.
struct TileView {
  const uint32_t* words;  // [words][16]
  const void* scales;     // [groups][16] of scale_type
  const int32_t* zeros;   // [groups][16], or null: none but what the table has
  ScaleType scale_type = ScaleType::float32;

  /// From a group on, `first_words` behind the words of this.
  TileView from(int64_t first_words, int64_t group) const {
    return {words + first_words, static_cast<const char*>(scales) + group * kTileRows * size_of(scale_type),
            zeros == nullptr ? nullptr : zeros + group * kTileRows, scale_type};
  }
};

/// The columns (of the weight) that kernels pass over: whole units of codes.
struct Span {
  const float* table;  // 2^bits values
  int64_t groups;      // of the weight's columns
  int64_t units_per_group;
};

/// Decodes one tile to panel words, `stride` words a step.
using DecodePanel = void(const TileView& tile, const Span& span, void* to, int64_t stride);

/// c[r][16 t ..] = rows of x times the tiles. x: [columns][rows] words of the kernel's operand in its order
/// of columns; sums: [groups][rows] of x's values (bfloat16, int8); scales: [groups][rows] (int8).
struct FewRowsInput {
  const void* x;
  const float* sums;
  const float* scales;
  bool accumulate;  // onto c
};
using FewRows = void(const TileView* tiles, const Span& span, const FewRowsInput& input, float* c);

struct DequantKernels {
  int tiles;  // of a panel
  /// [decoding][bits], null where there is none. Rounded: to bfloat16 values.
  DecodePanel* decode_float32[kDecodings][kMostBits + 1];
  DecodePanel* decode_rounded[kDecodings][kMostBits + 1];
  FewRows* few_rows[kMostFewRows][kDecodings][kMostBits + 1];
  FewRows* few_rows_of_int4[kMostFewRows];  // a table of integers one apart
};

/// For bfloat16 operands.
struct PairKernels {
  DecodePanel* decode[kDecodings][kMostBits + 1];
  DecodePanel* decode_int4;  // a table of integers one apart
  FewRows* few_rows[kMostFewRows][kDecodings][kMostBits + 1];
};

/// For int8 operands: codes as bytes, without zeros and scales.
struct ByteKernels {
  int tiles;
  DecodePanel* decode[kMostBits + 1];
};
struct FewByteRows {
  FewRows* multiply[kMostFewRows][kMostBits + 1];
};
/// For any number of rows, in tiles of them: codes of four bits, and bytes, as a weight of eight has them.
struct ByteRows {
  int rows;  // of a tile, at most
  FewRows* of_nibbles[kMostTileRows];
  FewRows* of_bytes[kMostTileRows];
};

const DequantKernels& dequant_kernels();
/// Null where there are no instructions for bfloat16.
const PairKernels* pair_kernels();
const ByteKernels& byte_kernels();
const ByteRows& byte_rows();
/// Null without VNNI.
const FewByteRows* few_byte_rows();

/// The order in which a unit's columns stand in the words of the operands: of few_rows for bfloat16, and of
/// bytes.
ColumnOrder pair_order(Decoding decoding, int bits);
ColumnOrder byte_order(int bits);
/// Codes of a unit.
int unit_codes(int bits);
int unit_words(int bits);

}  // namespace quantaria::ops
