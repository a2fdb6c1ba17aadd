// Compiled where the kernels are: by nvcc's build, and by the emulated one.
#include "cuda/kernels.h"

namespace quantaria::cuda {

namespace {

constexpr ops::MoeKernels kMoe{ops::route_cuda, ops::sort_slots_cuda, ops::slot_sort_workspace,
                               ops::experts_cuda, ops::grouped_matmul_cuda};

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels all{.copy = ops::copy_cuda,
                               .gemm = ops::gemm_cuda,
                               .dequantize = ops::dequantize_cuda,
                               .dequant_matmul = ops::dequant_matmul_cuda,
                               .dequant_matmul_workspace = ops::dequant_matmul_workspace,
                               .moe = kMoe,
                               .quantize = ops::kQuantizeLaunchers,
                               .bits = ops::kBitLaunchers,
                               .compare = ops::kCompareLaunchers,
                               .int8 = ops::kInt8Launchers,
                               .llm_int8 = ops::kLlmInt8Launchers,
                               .hadamard = ops::kHadamardLaunchers};
  return all;
}

}  // namespace quantaria::cuda
