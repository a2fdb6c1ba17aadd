#pragma once

#include <numeric>

#include "numerics/code_books.h"
#include "ops/quantize/quantize.h"

/// What quantizing and dequantizing by code books share.
namespace quantaria::ops {

constexpr int bits_of(Codebook book) { return book == Codebook::dynamic8 ? 8 : 4; }

/// The table of a 4-bit book.
constexpr const numerics::Book16& table_of(Codebook book) {
  switch (book) {
    case Codebook::fp4:
      return numerics::kFp4;
    case Codebook::e3m0:
      return numerics::kE3M0;
    default:
      return numerics::kNf4;
  }
}

/// The scheme with a block of at most `size` elements, the weight's. Throws ERR_ARGUMENT.
CodebookScheme checked(const CodebookScheme& scheme, int64_t size);

/// Flat pieces in which a weight is worked on start at multiples of this: whole blocks, whole words.
inline int64_t piece_unit(const CodebookScheme& scheme) { return std::lcm(scheme.block_size, int64_t{8}); }

/// Elements of a piece where rows do not make pieces.
inline int64_t piece_length(const CodebookScheme& scheme) {
  constexpr int64_t kAtLeast = 4096;
  const int64_t unit = piece_unit(scheme);
  return (kAtLeast + unit - 1) / unit * unit;
}

}  // namespace quantaria::ops
