// Compiled where the kernels are: by nvcc's build, and by the emulated one.
#include "cuda/kernels.h"

namespace quantaria::cuda {

namespace {

constexpr ops::MoeKernels kMoe{ops::route_cuda, ops::sort_slots_cuda, ops::slot_sort_workspace,
                               ops::experts_cuda, ops::grouped_matmul_cuda};

constexpr ops::CudaDecoderKernels kDecoder{ops::rms_norm_cuda,    ops::rotate_cuda, ops::attend_cuda,
                                           ops::embed_cuda,       ops::add_cuda,    ops::swiglu_cuda,
                                           ops::score_tokens_cuda};

}  // namespace

const Kernels& kernels() {
  static constexpr Kernels all{ops::copy_cuda,
                               ops::gemm_cuda,
                               ops::dequantize_cuda,
                               ops::dequant_matmul_cuda,
                               ops::dequant_matmul_workspace,
                               kMoe,
                               kDecoder,
                               ops::compare_cuda};
  return all;
}

}  // namespace quantaria::cuda
