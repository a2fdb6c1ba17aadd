#include "cuda/grid.h"
#include "ops/copy/cast_value.cuh"
#include "ops/dequant_matmul/coded_value.cuh"
#include "ops/quantize/error_sums.cuh"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 512;

struct Sums {
  double error;
  double weight;
};

struct ErrorShared {
  CodedRows::Shared weight;
  Sums of_warp[kThreads / 32];
};

/// Both sums of a block's elements, whole in thread 0.
__device__ Sums sum_of_block(Sums sums, Sums (&of_warp)[kThreads / 32]) {
  for (int apart = 16; apart > 0; apart /= 2) {
    sums.error += __shfl_xor_sync(~0u, sums.error, apart);
    sums.weight += __shfl_xor_sync(~0u, sums.weight, apart);
  }
  if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = sums;
  __syncthreads();  // every warp's sums are there
  if (threadIdx.x == 0) {
    for (int i = 1; i < kThreads / 32; ++i) {
      sums.error += of_warp[i].error;
      sums.weight += of_warp[i].weight;
    }
  }
  return sums;
}

__global__ void __launch_bounds__(kThreads)
    error_sums(ConstMatrix w, const __grid_constant__ CodedRows quantized, Sums* partial) {
  auto& shared = simt::shared<ErrorShared>();
  quantized.prepare(shared.weight);
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  const int64_t count = w.rows * w.cols;
  Sums sums{0, 0};
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const int64_t r = i / w.cols;
    const int64_t c = i % w.cols;
    const double value =
        static_cast<double>(load_float(w.dtype, w.data, r * w.row_stride + c * w.col_stride));
    const double lost = value - static_cast<double>(quantized.value(shared.weight, quantized.matrix, r, c));
    sums.error += lost * lost;
    sums.weight += value * value;
  }
  sums = sum_of_block(sums, shared.of_warp);
  if (threadIdx.x == 0) simt::store(partial + blockIdx.x, sums);
}

struct FinishShared {
  Sums of_warp[kThreads / 32];
};

__global__ void __launch_bounds__(kThreads) finish_sums(const Sums* partial, int count, float* relative) {
  auto& shared = simt::shared<FinishShared>();
  Sums sums{0, 0};
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) {
    const Sums part = simt::load(partial + i);
    sums.error += part.error;
    sums.weight += part.weight;
  }
  sums = sum_of_block(sums, shared.of_warp);
  if (threadIdx.x == 0)
    simt::store(relative, sums.error > 0 ? static_cast<float>(sqrt(sums.error / sums.weight)) : 0.0f);
}

}  // namespace

int64_t error_sums_workspace() { return kMostBlocks * static_cast<int64_t>(sizeof(Sums)); }

void relative_error_cuda(simt::Stream stream, const ConstMatrix& w, const DeviceWeight& quantized,
                         std::byte* partial, float* relative_error) {
  const int64_t count = w.rows * w.cols;
  const int64_t blocks = count == 0 ? 0 : std::min<int64_t>((count + kThreads - 1) / kThreads, kMostBlocks);
  auto* const sums = reinterpret_cast<Sums*>(partial);
  if (blocks > 0)
    simt::launch(error_sums, dim3(static_cast<unsigned>(blocks)), dim3(kThreads), sizeof(ErrorShared), stream,
                 w, CodedRows{quantized.matrix, quantized.table}, sums);
  simt::launch(finish_sums, dim3(1), dim3(kThreads), sizeof(FinishShared), stream,
               static_cast<const Sums*>(sums), static_cast<int>(blocks), relative_error);
}

}  // namespace quantaria::ops
