#include "ops/gemm/int8_tile.h"

namespace quantaria::ops::QUANTARIA_ISA {

extern const Int8Tiles int8_tiles;
const Int8Tiles int8_tiles = int8_tiles_of(std::make_integer_sequence<int, kInt8Rows>());

}  // namespace quantaria::ops::QUANTARIA_ISA
