#include "ops/gemm/fma_product.cuh"
#include "ops/gemm/gemm_cuda.h"

namespace quantaria::ops {
namespace {

template <bool LeftAlong, bool RightAlong>
void launch(simt::Stream stream, const ConstMatrix& a, const ConstMatrix& b, const Epilogue& epilogue) {
  launch_fma_product(stream, DenseRows<LeftAlong>{a.data, a.dtype, a.row_stride, a.col_stride},
                     DenseRows<RightAlong>{b.data, b.dtype, b.col_stride, b.row_stride}, a.cols, epilogue);
}

}  // namespace

void gemm_float32_cuda(void* opaque_stream, const ConstMatrix& a, const ConstMatrix& b,
                       const ConstMatrix* bias, const Matrix& c) {
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const Epilogue epilogue = epilogue_of(bias, c);
  if (a.row_stride == 1 && a.col_stride != 1)
    b.row_stride == 1 ? launch<false, true>(stream, a, b, epilogue)
                      : launch<false, false>(stream, a, b, epilogue);
  else
    b.row_stride == 1 ? launch<true, true>(stream, a, b, epilogue)
                      : launch<true, false>(stream, a, b, epilogue);
}

}  // namespace quantaria::ops
