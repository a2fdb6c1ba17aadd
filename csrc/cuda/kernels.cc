// Compiled where the kernels are: by nvcc's build, and by the emulated one.
#include "cuda/kernels.h"

namespace quantaria::cuda {

const Kernels& kernels() {
  static constexpr Kernels all{ops::copy_cuda, ops::gemm_cuda, ops::dequantize_cuda, ops::dequant_matmul_cuda,
                               ops::dequant_matmul_workspace};
  return all;
}

}  // namespace quantaria::cuda
