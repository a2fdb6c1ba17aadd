// Compiled where the kernels are: by nvcc's build, and by the emulated one.
#include "cuda/kernels.h"

namespace quantaria::cuda {

const Kernels& kernels() {
  static constexpr Kernels all{.copy = ops::copy_cuda,
                               .gemm = ops::gemm_cuda,
                               .gemm_workspace = ops::gemm_workspace,
                               .dequantize = ops::dequantize_cuda,
                               .dequant_matmul = ops::dequant_matmul_cuda,
                               .dequant_matmul_workspace = ops::dequant_matmul_workspace,
                               .on_tensor_cores = ops::on_tensor_cores,
                               .order_codes = ops::order_codes_cuda,
                               .moe = ops::kMoeLaunchers,
                               .decoder = ops::kDecoderLaunchers,
                               .quantize = ops::kQuantizeLaunchers,
                               .bits = ops::kBitLaunchers,
                               .compare = ops::kCompareLaunchers,
                               .gptq = ops::kGptqLaunchers,
                               .int8 = ops::kInt8Launchers,
                               .llm_int8 = ops::kLlmInt8Launchers,
                               .hadamard = ops::kHadamardLaunchers,
                               .scaling = ops::kScalingLaunchers};
  return all;
}

}  // namespace quantaria::cuda
