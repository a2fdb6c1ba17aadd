#pragma once

#include <cstdint>

namespace quantaria::ops {

/// Row kernels of the dense bit stream, indexed by bits 2..8 and compiled once per instruction set.
/// Codes are one byte each.
struct BitKernels {
  /// Writes packed_row_bytes(n, bits). Codes are < 2^bits; up to 31 bytes behind them are read and must be 0.
  void (*pack[9])(const uint8_t* codes, int64_t n, uint8_t* packed);
  /// Reads packed_row_bytes(n, bits); writes up to 31 codes behind the last one.
  void (*unpack[9])(const uint8_t* packed, int64_t n, uint8_t* codes);
};

/// Codes that a buffer must have room for behind the last one.
inline constexpr int64_t kPackSlack = 32;

/// Those of selected_isa().
const BitKernels& bit_kernels();

}  // namespace quantaria::ops
