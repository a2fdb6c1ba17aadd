#include "ops/dequant_matmul/int8_product.cuh"

namespace quantaria::ops {

void launch_llm_int8(simt::Stream stream, const Int8Product& product, int tile_rows) {
  switch (product.outliers.x.dtype) {
    case DType::float16:
      return launch_int8<8, OneGroup, simt::Half>(stream, product, tile_rows);
    case DType::bfloat16:
      return launch_int8<8, OneGroup, simt::Bfloat16>(stream, product, tile_rows);
    default:
      return launch_int8<8, OneGroup, float>(stream, product, tile_rows);
  }
}

}  // namespace quantaria::ops
