#include "ops/dequant_matmul/bytes.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kTiles = 2;
#else
constexpr int kTiles = 1;
#endif

template <int bits>
void decode(const TileView& tile, const Span& span, void* to, int64_t stride) {
  using U = Unit<bits>;
  const uint32_t* words = tile.words;
  uint32_t* step = static_cast<uint32_t*>(to);
  for (int64_t u = 0; u < span.groups * span.units_per_group; ++u, words += U::kWords * kLanes) {
    Ints unit[U::kWords];
    load_unit<bits>(words, unit);
#pragma GCC unroll 8
    for (int j = 0; j < U::kCodes / 4; ++j, step += stride) store(step, bytes_of<bits>(unit, j));
  }
}

}  // namespace

extern const ByteKernels byte_kernels;
const ByteKernels byte_kernels = {
    kTiles, {nullptr, nullptr, decode<2>, decode<3>, decode<4>, decode<5>, decode<6>, decode<7>, decode<8>}};

}  // namespace quantaria::ops::QUANTARIA_ISA
