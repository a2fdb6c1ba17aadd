#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/error.h"
#include "ops/bitpack/bitpack.h"
#include "ops/bitpack/kernels.h"
#include "ops/quantize/cascade_mean.h"
#include "ops/quantize/code_book_of.h"
#include "ops/quantize/panels.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// A run of the flat weight that starts with a block and a packed word.
struct Piece {
  int64_t index;
  int64_t first;  // flat index of its first element
  int64_t count;
  const float* values;
};

bool rows_are_pieces(const ConstMatrix& w, const CodebookScheme& scheme) {
  return w.cols % piece_unit(scheme) == 0;
}

int64_t piece_count(const ConstMatrix& w, const CodebookScheme& scheme) {
  if (rows_are_pieces(w, scheme)) return w.rows;
  const int64_t length = piece_length(scheme);
  return (w.rows * w.cols + length - 1) / length;
}

/// body(piece) for all pieces of w, in parallel. Pieces are rows where blocks end with them.
template <class Body>
void for_each_piece(ThreadPool& pool, const ConstMatrix& w, const CodebookScheme& scheme, const Body& body) {
  if (rows_are_pieces(w, scheme)) {
    for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
      for (int64_t i = 0; i < strip.rows(); ++i)
        body(Piece{first + i, (first + i) * w.cols, w.cols, strip.row(i)});
    });
    return;
  }
  const int64_t length = piece_length(scheme);
  constexpr int64_t kElementsPerTask = int64_t{1} << 16;
  const int64_t per_task = std::max<int64_t>(1, kElementsPerTask / length);
  const int64_t pieces = piece_count(w, scheme);
  pool.parallel_for((pieces + per_task - 1) / per_task, [&](int64_t task) {
    // One read for the task: a transposed source is then transposed in larger parts.
    const int64_t begin = task * per_task * length;
    const int64_t size = std::min(per_task * length, w.rows * w.cols - begin);
    float* const values = thread_buffer<float>(Slot::flat, size);
    read_flat(w, begin, size, values);
    for (int64_t at = 0; at < size; at += length)
      body(Piece{(begin + at) / length, begin + at, std::min(length, size - at), values + at});
  });
}

class PieceEncoder {
 public:
  PieceEncoder(const CodebookScheme& scheme, uint8_t* packed, float* absmax)
      : scheme_(scheme), packed_(packed), absmax_(absmax) {}

  void encode(const Piece& piece, FiniteCheck& check, LaneSums* sums) const {
    const int64_t block = scheme_.block_size;
    float* const absmax = absmax_ + piece.first / block;
    if (!check.ok(range_kernels().absmax(piece.values, piece.count, block, absmax))) return;
    uint8_t* const codes = thread_buffer<uint8_t>(Slot::codes, piece.count + kCodeSlack);
    const CodebookKernels& kernels = codebook_kernels();
    const int bits = bits_of(scheme_.book);
    if (bits == 8) {
      kernels.encode8(piece.values, piece.count, block, absmax, codes);
      if (sums != nullptr) add_dynamic_errors(piece, codes, absmax, *sums);
    } else {
      kernels.encode4(piece.values, piece.count, block, absmax, table_of(scheme_.book), codes, sums);
    }
    std::memset(codes + piece.count, 0, kPackSlack);
    bit_kernels().pack[bits](codes, piece.count, packed_ + piece.first * bits / 8);
  }

  /// Errors of a piece already encoded, under other absmax values.
  void add_errors(const Piece& piece, const float* absmax, LaneSums& sums) const {
    uint8_t* const codes = thread_buffer<uint8_t>(Slot::codes, piece.count + kPackSlack);
    bit_kernels().unpack[4](packed_ + piece.first / 2, piece.count, codes);
    float* const decoded = thread_buffer<float>(Slot::decoded_row, piece.count);
    codebook_kernels().decode4(codes, piece.count, scheme_.block_size,
                               absmax + piece.first / scheme_.block_size, table_of(scheme_.book), decoded);
    row_kernels().add_errors(piece.values, decoded, piece.count, sums);
  }

 private:
  void add_dynamic_errors(const Piece& piece, const uint8_t* codes, const float* absmax,
                          LaneSums& sums) const {
    float* const decoded = thread_buffer<float>(Slot::decoded_row, piece.count);
    codebook_kernels().decode8(codes, piece.count, scheme_.block_size, absmax, decoded);
    row_kernels().add_errors(piece.values, decoded, piece.count, sums);
  }

  CodebookScheme scheme_;
  uint8_t* packed_;
  float* absmax_;
};

/// The absmax values less their mean, in 8 bits of the dynamic map over blocks of 256.
void quantize_absmax(const std::vector<float>& absmax, const CodebookStored& to) {
  const float offset = cascade_mean(absmax.data(), static_cast<int64_t>(absmax.size()));
  *to.absmax_offset = offset;
  std::vector<float> centred(absmax.size());
  for (size_t i = 0; i < absmax.size(); ++i) centred[i] = absmax[i] - offset;
  const auto blocks = static_cast<int64_t>(absmax.size());
  range_kernels().absmax(centred.data(), blocks, kNestedBlock, to.absmax_scales);
  std::vector<uint8_t> codes(absmax.size() + kCodeSlack);
  codebook_kernels().encode8(centred.data(), blocks, kNestedBlock, to.absmax_scales, codes.data());
  std::copy_n(codes.begin(), absmax.size(), to.absmax_codes);
}

void quantize_plain(ThreadPool& pool, const ConstMatrix& w, const CodebookScheme& scheme, uint8_t* packed,
                    float* absmax, ErrorSums* sums) {
  FiniteCheck check;
  if (codebook_panels_fit(w, scheme)) {
    PartSums parts(sums, w.rows);
    quantize_codebook_panels(pool, w, scheme, packed, absmax, check, parts);
    check.finish(w);
    return parts.finish();
  }
  PartSums parts(sums, piece_count(w, scheme));
  const PieceEncoder encoder(scheme, packed, absmax);
  for_each_piece(pool, w, scheme, [&](const Piece& piece) {
    LaneSums lanes;
    encoder.encode(piece, check, parts.wanted() ? &lanes : nullptr);
    if (parts.wanted()) parts.put(piece.index, lanes);
  });
  check.finish(w);
  parts.finish();
}

/// The codes come from the unrounded absmax; what is lost shows only with the decoded one.
void quantize_double(ThreadPool& pool, const ConstMatrix& w, const CodebookScheme& scheme,
                     const CodebookStored& to, ErrorSums* sums) {
  std::vector<float> absmax(static_cast<size_t>(block_count(scheme, w.rows, w.cols)));
  quantize_plain(pool, w, scheme, to.packed, absmax.data(), nullptr);
  quantize_absmax(absmax, to);
  if (sums == nullptr) return;
  decode_nested_absmax(to.absmax_codes, to.absmax_scales, *to.absmax_offset,
                       static_cast<int64_t>(absmax.size()), absmax.data());
  PartSums parts(sums, piece_count(w, scheme));
  const PieceEncoder encoder(scheme, to.packed, nullptr);
  for_each_piece(pool, w, scheme, [&](const Piece& piece) {
    LaneSums lanes;
    encoder.add_errors(piece, absmax.data(), lanes);
    parts.put(piece.index, lanes);
  });
  parts.finish();
}

}  // namespace

CodebookScheme checked(const CodebookScheme& scheme, int64_t size) {
  if (scheme.block_size < 1)
    fail(ErrorCode::argument, "blockSize: ", scheme.block_size, " given, at least 1 expected");
  if (scheme.double_quant && scheme.book == Codebook::dynamic8)
    fail(ErrorCode::argument, "doubleQuant: only for 4-bit code books");
  CodebookScheme fitted = scheme;
  fitted.block_size = std::clamp<int64_t>(size, 1, scheme.block_size);
  return fitted;
}

int64_t block_count(const CodebookScheme& scheme, int64_t out, int64_t in) {
  return out * in == 0 ? 0 : (out * in - 1) / scheme.block_size + 1;
}

void quantize_codebook(ThreadPool& pool, const ConstMatrix& w, const CodebookScheme& scheme,
                       const CodebookStored& to, ErrorSums* sums) {
  check_weight(w);
  const CodebookScheme fitted = checked(scheme, w.rows * w.cols);
  if (fitted.double_quant)
    quantize_double(pool, w, fitted, to, sums);
  else
    quantize_plain(pool, w, fitted, to.packed, to.absmax, sums);
}

}  // namespace quantaria::ops
