#include "ops/gemm/fma_product.cuh"
#include "ops/gemm/gemm_cuda.h"

namespace quantaria::ops {
namespace {

template <bool LeftAlong, bool RightAlong>
void launch(const DenseCall& call) {
  const ConstMatrix& a = call.a;
  const ConstMatrix& b = call.b;
  launch_fma_product(call.stream, DenseRows<LeftAlong>{{a.data}, a.dtype, a.row_stride, a.col_stride}, a.rows,
                     DenseRows<RightAlong>{{b.data}, b.dtype, b.col_stride, b.row_stride}, call.sources,
                     a.cols, call.tiles, call.epilogue);
}

}  // namespace

void launch_dense_fma_product(const DenseCall& call) {
  const bool right_along = call.b.row_stride == 1;
  if (call.a.row_stride == 1 && call.a.col_stride != 1)
    right_along ? launch<false, true>(call) : launch<false, false>(call);
  else
    right_along ? launch<true, true>(call) : launch<true, false>(call);
}

void gemm_float32_cuda(void* stream, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias,
                       const Matrix& c) {
  launch_dense_fma_product({static_cast<simt::Stream>(stream), a, b, nullptr, false,
                            tiles_of_rows(c.rows, kFmaTile), epilogue_of(bias, c)});
}

}  // namespace quantaria::ops
