#include "cuda/grid.h"
#include "ops/dequant_matmul/coded_call.cuh"
#include "ops/dequant_matmul/dequant_matmul_cuda.h"
#include "ops/gemm/fma_product.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    write_values(const __grid_constant__ CodedRows weight, DType dtype, std::byte* values) {
  auto& shared = simt::shared<CodedRows::Shared>();
  weight.prepare(shared);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  const int64_t count = weight.matrix.out * weight.matrix.in;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride)
    store_value(dtype, values, i,
                {true, weight.value(shared, i / weight.matrix.in, i % weight.matrix.in), 0});
}

}  // namespace

void dequantize_cuda(void* stream, const DeviceWeight& weight, DType dtype, std::byte* values) {
  const int64_t count = weight.matrix.out * weight.matrix.in;
  if (count == 0) return;
  simt::launch(write_values, cuda::blocks_for(count, kThreads), dim3(kThreads), sizeof(CodedRows::Shared),
               static_cast<simt::Stream>(stream), CodedRows{weight.matrix, weight.table}, dtype, values);
}

void launch_coded_fma_product(const CodedCall& call) {
  launch_fma_product(call.stream,
                     DenseRows<true>{{call.x.data}, call.x.dtype, call.x.row_stride, call.x.col_stride},
                     call.x.rows, CodedRows{call.weight.matrix, call.weight.table}, call.sources,
                     call.weight.matrix.in, call.tiles, call.epilogue);
}

void dequant_matmul_float32_cuda(void* stream, const ConstMatrix& x, const DeviceWeight& weight,
                                 const ConstMatrix* bias, const Matrix& y) {
  launch_coded_fma_product({static_cast<simt::Stream>(stream),
                            x,
                            weight,
                            1,
                            nullptr,
                            tiles_of_rows(y.rows, kFmaTileRows),
                            1,
                            {},
                            epilogue_of(bias, y)});
}

}  // namespace quantaria::ops
