#include "ops/moe/experts_cuda.h"

#include <algorithm>

#include "cuda/grid.h"
#include "ops/copy/cast_value.cuh"
#include "ops/gemm/swiglu.cuh"
#include "ops/moe/grouped_product.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;

/// to = silu(gate) * up
__global__ void __launch_bounds__(kThreads)
    activate(const float* gate, const float* up, int64_t count, DType dtype, std::byte* to) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride)
    store_value(dtype, to, i, {true, swiglu(simt::load(gate + i), simt::load(up + i)), 0});
}

/// y[t] = sum_k weights[t, k] * results[t * top_k + k], k in order; results [tokens * top_k, y's columns].
__global__ void __launch_bounds__(kThreads)
    combine(const float* results, const float* weights, int64_t top_k, Matrix y) {
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < y.rows * y.cols; i += stride) {
    const int64_t t = i / y.cols;
    const int64_t h = i % y.cols;
    float sum = 0;
    for (int64_t k = 0; k < top_k; ++k) {
      const float result = simt::load(results + (t * top_k + k) * y.cols + h);
      const float weight = simt::load(weights + t * top_k + k);
      sum = k == 0 ? result * weight : fmaf(result, weight, sum);
    }
    store_value(y.dtype, y.data, t * y.row_stride + h * y.col_stride, {true, sum, 0});
  }
}

Matrix rows_in(std::byte* data, DType dtype, int64_t rows, int64_t cols) {
  return {data, dtype, rows, cols, cols, 1};
}

}  // namespace

void experts_cuda(void* opaque_stream, const ConstMatrix& x, const Slots& slots,
                  const ExpertMatrices& experts, Operand operand, const Allocate& allocate, const Matrix& y) {
  if (y.rows == 0 || y.cols == 0) return;
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const int64_t rows = slots.tokens * slots.top_k;
  const int64_t hidden = x.cols;
  const int64_t inter = experts.gate.empty() ? 0 : experts.gate[0].out();
  GroupedProducts products(stream, {rows, slots.experts, slots.offsets, nullptr, nullptr}, operand, allocate);
  const DType between = between_products(x.dtype, operand);
  const Matrix activated = rows_in(products.room(rows * inter * size_of(between)), between, rows, inter);
  const Matrix results = rows_in(products.room(rows * hidden * 4), DType::float32, rows, hidden);

  ProductTiles by_token;
  by_token.left_order = slots.order;
  by_token.share = static_cast<int32_t>(slots.top_k);
  const bool alike =
      std::equal(experts.gate.begin(), experts.gate.end(), experts.up.begin(), experts.up.end(), same_pair);
  if (alike) {
    products.multiply(x, experts.gate, &experts.up, by_token, activated);
  } else {
    const Matrix gate = rows_in(products.room(rows * inter * 4), DType::float32, rows, inter);
    const Matrix up = rows_in(products.room(rows * inter * 4), DType::float32, rows, inter);
    products.multiply(x, experts.gate, nullptr, by_token, gate);
    products.multiply(x, experts.up, nullptr, by_token, up);
    simt::launch(activate, cuda::blocks_for(rows * inter, kThreads), dim3(kThreads), 0, stream,
                 reinterpret_cast<const float*>(gate.data), reinterpret_cast<const float*>(up.data),
                 rows * inter, between, activated.data);
  }
  ProductTiles by_slot;
  by_slot.result_order = slots.order;
  products.multiply(activated, experts.down, nullptr, by_slot, results);
  simt::launch(combine, cuda::blocks_for(y.rows * y.cols, kThreads), dim3(kThreads), 0, stream,
               reinterpret_cast<const float*>(results.data), slots.weights, slots.top_k, y);
}

void grouped_matmul_cuda(void* stream, const ConstMatrix& x, const int32_t* counts,
                         const std::vector<ExpertMatrix>& factors, Operand operand, std::byte* verdict,
                         const Allocate& allocate, const Matrix& y) {
  GroupedProducts products(static_cast<simt::Stream>(stream),
                           {x.rows, static_cast<int64_t>(factors.size()), nullptr, counts, verdict}, operand,
                           allocate);
  products.check_counts();
  products.multiply(x, factors, nullptr, {}, y);
}

}  // namespace quantaria::ops
