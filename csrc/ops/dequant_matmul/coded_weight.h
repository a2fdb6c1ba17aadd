#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/dtype.h"
#include "ops/dequant_matmul/kernels.h"

namespace quantaria::ops {

/// Scales of a weight's groups of columns, however a scheme keeps them.
struct GroupScales {
  enum class Form : uint8_t {
    tiled,       // `dtype` [tile][groups][rows of the tile], as codes are (weight_tiles.h)
    per_tensor,  // one float32
    e8m0,        // uint8 [out][groups], powers of two over row_divisors (null: 1)
    nested,      // uint8 [out][groups] into `map`, times floats[block / nested_block], plus offset
  };
  Form form = Form::tiled;
  const float* floats = nullptr;
  const uint8_t* bytes = nullptr;
  const float* row_divisors = nullptr;
  const float* map = nullptr;
  float offset = 0;
  float divisor = 1;             // of tiled scales
  DType dtype = DType::float32;  // of tiled scales: `floats` points to values of it
};

/// A quantized weight [out, in] in tiles (weight_tiles.h), as its products see it:
///   value = (table[code] - zero) * scale
struct CodedWeight {
  int64_t out = 0;
  int64_t in = 0;
  int bits = 0;
  const uint32_t* words = nullptr;
  int64_t words_per_row = 0;
  Decoding decoding = Decoding::permutation;
  std::vector<float>
      table;             // 2^bits values; integers that are symmetric have their zero point taken off here
  bool integer = false;  // table[code] = code + table[0]
  const int32_t* zeros = nullptr;  // in the form of scales (tiled or per_tensor), or null: none
  int64_t group = 0;               // columns that share a scale; a multiple of a unit of codes, or all
  GroupScales scales;

  int64_t groups() const { return in == 0 ? 0 : (in + group - 1) / group; }
  int64_t tiles() const { return (out + kTileRows - 1) / kTileRows; }
};

/// Where the scales of a tile lie, if they lie in tiles.
const std::byte* scales_of_tile(const CodedWeight& weight, int64_t tile);

/// Tile `tile`, with sixteen rows whatever it has and words padded to whole units: where it lies if it is
/// like that already, else in memory of this thread that the next call for the same `place` (below
/// kMostTiles) reuses. Rows past the weight's last one repeat it.
TileView view_of(const CodedWeight& weight, int64_t tile, int place);

}  // namespace quantaria::ops
