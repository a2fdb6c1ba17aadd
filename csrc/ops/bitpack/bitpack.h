#pragma once

#include <array>
#include <cstdint>
#include <optional>

#include "core/matrix.h"
#include "core/thread_pool.h"

namespace quantaria::ops {

/// Bytes of a bit row of `codes` codes: a dense stream, first code in the lowest bits, padded with zero
/// bits to whole 32-bit words.
constexpr int64_t packed_row_bytes(int64_t codes, int bits) { return (codes * bits + 31) / 32 * 4; }

/// Column that nibble j of each run of 8 holds: nibble j of run c is column 8 c + order[j].
using NibbleOrder = std::array<int, 8>;

/// Packs each row of `codes` [rows, cols] (uint8, int8, int16, int32; any strides) into
/// packed_row_bytes(cols, bits) bytes at `packed` + row * that. Stored is value + offset, which must lie in
/// [0, 2^bits); bits is 2..8 or 16. With `order` (4 bits only, cols a multiple of 8) nibbles are permuted.
/// Throws ERR_ARGUMENT naming the first code out of range (row-major), ERR_DTYPE, ERR_SHAPE.
void pack_bits(ThreadPool& pool, const ConstMatrix& codes, int bits, int32_t offset, uint8_t* packed,
               const std::optional<NibbleOrder>& order = std::nullopt);

/// The inverse: codes(r, c) = stored code - offset. `codes` is uint8, int8, int16 or int32, any strides;
/// ERR_ARGUMENT if its type cannot hold every value of [-offset, 2^bits - 1 - offset]. Row r starts at
/// packed + r * packed_stride bytes (packed_row_bytes(cols, bits) in Quantaria's own stored form).
void unpack_bits(ThreadPool& pool, const uint8_t* packed, int64_t packed_stride, int bits, int32_t offset,
                 const Matrix& codes, const std::optional<NibbleOrder>& order = std::nullopt);

/// out[k] = in[k] with its two nibbles exchanged; in place is fine.
void swap_nibbles(ThreadPool& pool, const uint8_t* in, int64_t bytes, uint8_t* out);

/// quanto's planar packing along rows, bits 2 or 4. With v = 8 / bits and P = ceil(rows / v):
/// packed[p][c] = sum_j codes[p + j P][c] << (bits j), row-major [P, cols]. `codes` uint8 [rows, cols].
/// Throws ERR_ARGUMENT naming the first code out of range.
void pack_planar(ThreadPool& pool, const uint8_t* codes, int64_t rows, int64_t cols, int bits,
                 uint8_t* packed);
/// The inverse, for a known number of rows.
void unpack_planar(ThreadPool& pool, const uint8_t* packed, int64_t rows, int64_t cols, int bits,
                   uint8_t* codes);

struct CodeRange {
  int64_t low;
  int64_t high;
};

/// out(r, c) = in(r, c) + delta, both integer matrices (int8, uint8, int16, int32, int64) of one shape.
/// With `clamp` the sum is clamped to it first. A result that out's type cannot hold is ERR_ARGUMENT with
/// the first position (row-major).
void offset_codes(ThreadPool& pool, const ConstMatrix& in, int64_t delta,
                  const std::optional<CodeRange>& clamp, const Matrix& out);

// What the functions above check before they look at a code, and how they refuse one.

void check_packing(DType codes, int bits, const std::optional<NibbleOrder>& order, int64_t cols);
void check_unpacking(DType codes, int bits, int32_t offset, const std::optional<NibbleOrder>& order,
                     int64_t cols);
[[noreturn]] void refuse_packed(int64_t code, int64_t row, int64_t col, int bits, int32_t offset);
[[noreturn]] void refuse_planar(int64_t code, int64_t row, int64_t col, int bits);
[[noreturn]] void refuse_offset(int64_t code, int64_t delta, int64_t row, int64_t col, DType dtype);

}  // namespace quantaria::ops
