#pragma once

#include <cstdint>

namespace quantaria::ops {

/// Where the next row will be read and written: fetched into the cache by the way, as the passes over a row
/// leave the memory idle. May point anywhere.
struct Ahead {
  const float* from;
  float* to;
};

/// The passes over one row, compiled once per instruction set. Only sums of rounded values, so the bits are
/// the same on each.
struct HadamardKernels {
  /// to = scale * H_size from, in natural order. size is a power of two, 16 or more; to may be from.
  void (*sylvester)(const float* from, int64_t size, float scale, float* to, const Ahead& ahead);
  /// The same for each run of `size` < 16 elements, in place; count is a multiple of 16.
  void (*sylvester_of_runs)(float* row, int64_t count, int64_t size, float scale);
  /// Block i of to = sum over j of signs[i * m + j] * block j of from; blocks of `size` elements, a multiple
  /// of 16; m a multiple of 4.
  void (*base_of_blocks)(const float* from, const float* signs, int64_t m, int64_t size, float* to);
  /// The same for blocks of `size` < 16: signs[j * count + e] is the sign of block j in element e of the
  /// result; count = m * size rounded up to a multiple of 16.
  void (*base_of_elements)(const float* from, const float* signs, int64_t m, int64_t size, int64_t count,
                           float* to);
};

/// Those of selected_isa().
const HadamardKernels& hadamard_kernels();

}  // namespace quantaria::ops
