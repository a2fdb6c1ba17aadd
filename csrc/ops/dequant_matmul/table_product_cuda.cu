#include "ops/dequant_matmul/coded_product.cuh"

namespace quantaria::ops {
namespace {

template <class T>
void launch(const CodedCall& call) {
  if (call.weight.matrix.bits == 4) return launch_coded_tile<T, TableDecoder<T, 4>>(call);
  launch_coded_tile<T, TableDecoder<T, 8>>(call);
}

}  // namespace

void launch_table_product(const CodedCall& call) {
  call.x.dtype == DType::float16 ? launch<simt::Half>(call) : launch<simt::Bfloat16>(call);
}

}  // namespace quantaria::ops
