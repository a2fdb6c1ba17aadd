// Compiled where the kernels are: by nvcc's build, and by the emulated one.
#include "cuda/kernels.h"

namespace quantaria::cuda {

namespace {

constexpr ops::MoeKernels kMoe{ops::route_cuda, ops::sort_slots_cuda, ops::slot_sort_workspace,
                               ops::experts_cuda, ops::grouped_matmul_cuda};

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels all{ops::copy_cuda,
                               ops::gemm_cuda,
                               ops::dequantize_cuda,
                               ops::dequant_matmul_cuda,
                               ops::dequant_matmul_workspace,
                               kMoe};
  return all;
}

}  // namespace quantaria::cuda
