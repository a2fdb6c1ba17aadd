#include "ops/dequant_matmul/coded_product.cuh"

namespace quantaria::ops {
namespace {

template <class T>
void launch(const CodedCall& call) {
  switch (call.weight.matrix.bits) {
    case 2:
      return launch_coded_tile<T, IntegerDecoder<T, 2>>(call);
    case 3:
      return launch_coded_tile<T, IntegerDecoder<T, 3>>(call);
    case 4:
      return launch_coded_tile<T, IntegerDecoder<T, 4>>(call);
    default:
      return launch_coded_tile<T, IntegerDecoder<T, 8>>(call);
  }
}

}  // namespace

void launch_integer_product(const CodedCall& call) {
  call.x.dtype == DType::float16 ? launch<simt::Half>(call) : launch<simt::Bfloat16>(call);
}

}  // namespace quantaria::ops
