#pragma once

#include <cstdint>
#include <type_traits>

#include "simt/emulator/fragments.h"
#include "simt/emulator/rendezvous.h"
#include "simt/host/memory.h"
#include "simt/values.h"

/// Tensor cores. All 32 lanes take part. The names are those of simt/cuda/matrix.h.
///
/// Lane l holds, with g = l / 4 and t = l % 4 (16-bit elements, the first in the lower half of a register):
///   a [16, 16]  a[0] = (g, 2t), (g, 2t+1); a[1] = rows g + 8; a[2] = columns + 8; a[3] = both
///   b [16, 8]   b[0] = (2t, g), (2t+1, g); b[1] = rows + 8
///   d [16, 8]   d[0] = (g, 2t), d[1] = (g, 2t+1), d[2] and d[3] = row g + 8
/// and for signed bytes the same with four in a register: columns 4t.. of a and rows 4t.. of b, + 16 in the
/// other half.
namespace quantaria::simt {

/// d += a b on a 16 x 8 tile, K = 16, T is Half or Bfloat16, accumulated in float32.
template <class T>
void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                  const Site& site = Site::current()) {
  static_assert(std::is_same_v<T, Half> || std::is_same_v<T, Bfloat16>);
  emulator::Operands operands{a, b, d, 0};
  emulator::collective(~0u, std::is_same_v<T, Half> ? emulator::mma_half : emulator::mma_bfloat16, operands,
                       false, site);
}

/// d += a b on a 16 x 8 tile, K = 32, signed bytes, exact in int32 (which wraps).
inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            const Site& site = Site::current()) {
  emulator::Operands operands{a, b, d, 0};
  emulator::collective(~0u, emulator::mma_int8, operands, false, site);
}

/// d = a b + c, the same.
inline void mma_m16n8k32_s8(int32_t (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                            const int32_t (&c)[4], const Site& site = Site::current()) {
  for (int i = 0; i < 4; ++i) d[i] = c[i];
  mma_m16n8k32_s8(d, a, b, site);
}

/// N (1, 2 or 4) matrices of 8 x 8 16-bit elements; lane 8 i + r names row r of matrix i, 16 bytes of shared
/// memory. r[i] holds elements (g, 2t) and (g, 2t+1) of matrix i, or of its transpose.
template <int N, bool Transposed = false>
void ldmatrix(uint32_t (&r)[N], const void* row, const Site& site = Site::current()) {
  static_assert(N == 1 || N == 2 || N == 4);
  struct alignas(16) Row {
    uint32_t words[4];
  };
  Row mine{};
  if (emulator::lane() < N * 8) {  // the other lanes' addresses are not looked at
    emulator::require_aligned(row, sizeof(Row), "ldmatrix", site);
    emulator::require_shared(row, sizeof(Row), "ldmatrix", site);
    mine = *static_cast<const Row*>(row);  // by the lane itself, so that sanitizers know whose access it is
  }
  emulator::Operands operands{&mine, row, r, N};
  emulator::collective(~0u, Transposed ? emulator::load_matrix_transposed : emulator::load_matrix, operands,
                       false, site);
}

}  // namespace quantaria::simt
