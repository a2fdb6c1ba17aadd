#include "ops/compare/compare_cuda.h"

#include "cuda/grid.h"
#include "numerics/bits.h"

namespace quantaria::ops {
namespace {

constexpr int kThreads = 256;
constexpr int kMostBlocks = 512;

struct DifferenceShared {
  Difference of_warp[kThreads / 32];
};

__device__ void add(Difference& to, const Difference& part) {
  to.error += part.error;
  to.reference += part.reference;
  to.non_finite += part.non_finite;
}

/// The sum of a block's threads, whole in thread 0.
__device__ Difference sum_of_block(Difference sum, DifferenceShared& shared) {
  for (int apart = 16; apart > 0; apart /= 2)
    add(sum, {__shfl_xor_sync(~0u, sum.error, apart), __shfl_xor_sync(~0u, sum.reference, apart),
              __shfl_xor_sync(~0u, sum.non_finite, apart)});
  if (threadIdx.x % 32 == 0) shared.of_warp[threadIdx.x / 32] = sum;
  __syncthreads();  // every warp's sums are there
  for (int i = 1; threadIdx.x == 0 && i < kThreads / 32; ++i) add(sum, shared.of_warp[i]);
  return sum;
}

__global__ void __launch_bounds__(kThreads)
    compare_values(const float* values, const float* reference, int64_t count, Difference* partial) {
  auto& shared = simt::shared<DifferenceShared>();
  const int64_t stride = int64_t{gridDim.x} * kThreads;
  Difference sum{0, 0, 0};
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += stride) {
    const float value = simt::load(values + i);
    const double expected = reference ? static_cast<double>(simt::load(reference + i)) : 0.0;
    const double error = static_cast<double>(value) - expected;
    add(sum, {error * error, expected * expected, numerics::is_finite(value) ? 0 : 1});
  }
  sum = sum_of_block(sum, shared);
  if (threadIdx.x == 0) simt::store(partial + blockIdx.x, sum);
}

__global__ void __launch_bounds__(kThreads)
    add_differences(const Difference* partial, int count, Difference* result) {
  auto& shared = simt::shared<DifferenceShared>();
  Difference sum{0, 0, 0};
  for (int i = static_cast<int>(threadIdx.x); i < count; i += kThreads) add(sum, simt::load(partial + i));
  sum = sum_of_block(sum, shared);
  if (threadIdx.x == 0) simt::store(result, sum);
}

}  // namespace

int64_t compare_workspace() { return kMostBlocks * static_cast<int64_t>(sizeof(Difference)); }

void compare_cuda(void* opaque_stream, const float* values, const float* reference, int64_t count,
                  std::byte* workspace, Difference* result) {
  const auto stream = static_cast<simt::Stream>(opaque_stream);
  const int64_t blocks = count == 0 ? 0 : std::min<int64_t>((count + kThreads - 1) / kThreads, kMostBlocks);
  auto* const partial = reinterpret_cast<Difference*>(workspace);
  if (blocks > 0)
    simt::launch(compare_values, dim3(static_cast<unsigned>(blocks)), dim3(kThreads),
                 sizeof(DifferenceShared), stream, values, reference, count, partial);
  simt::launch(add_differences, dim3(1), dim3(kThreads), sizeof(DifferenceShared), stream,
               static_cast<const Difference*>(partial), static_cast<int>(blocks), result);
}

}  // namespace quantaria::ops
