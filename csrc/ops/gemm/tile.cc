#include "ops/gemm/tile.h"

#include "cpu/isa.h"

namespace quantaria::ops {

namespace scalar {
extern const FloatTiles float32_tiles;
}  // namespace scalar
namespace avx2 {
extern const FloatTiles float32_tiles;
}  // namespace avx2
namespace avx512 {
extern const FloatTiles float32_tiles;
}  // namespace avx512
namespace avx512bf16 {
extern const FloatTiles bfloat16_tiles;
}

const FloatTiles& float32_tiles() {
  static const FloatTiles* const by_isa[] = {&scalar::float32_tiles, &avx2::float32_tiles,
                                             &avx512::float32_tiles};
  return *of_selected_isa(by_isa);
}

const FloatTiles& bfloat16_tiles() {
  static const FloatTiles* const by_isa[] = {&scalar::float32_tiles, &avx2::float32_tiles,
                                             &avx512::float32_tiles, &avx512::float32_tiles,
                                             &avx512bf16::bfloat16_tiles};
  return *of_selected_isa(by_isa);
}

}  // namespace quantaria::ops
