#pragma once

#include "ops/bitpack/bitpack_cuda.h"
#include "ops/compare/compare_cuda.h"
#include "ops/copy/copy_cuda.h"
#include "ops/decoder/decoder_cuda.h"
#include "ops/dequant_matmul/dequant_matmul_cuda.h"
#include "ops/dequant_matmul/group_order_cuda.h"
#include "ops/gemm/gemm_cuda.h"
#include "ops/gptq/gptq_cuda.h"
#include "ops/hadamard/hadamard_cuda.h"
#include "ops/llm_int8/llm_int8_cuda.h"
#include "ops/moe/moe_cuda.h"
#include "ops/quantize/quantize_cuda.h"
#include "ops/scaling/scaling_cuda.h"

namespace quantaria::cuda {

/// What CUDA devices run: the launchers of csrc/ops/*/*_cuda.cu, each documented in its header. Pointers,
/// which a device hands out: what dispatches by device is then compiled once for builds with kernels and
/// without.
struct Kernels {
  decltype(&ops::copy_cuda) copy;
  decltype(&ops::gemm_cuda) gemm;
  decltype(&ops::gemm_workspace) gemm_workspace;
  decltype(&ops::dequantize_cuda) dequantize;
  decltype(&ops::dequant_matmul_cuda) dequant_matmul;
  decltype(&ops::dequant_matmul_workspace) dequant_matmul_workspace;
  decltype(&ops::on_tensor_cores) on_tensor_cores;
  decltype(&ops::order_codes_cuda) order_codes;
  ops::MoeLaunchers moe;
  ops::DecoderLaunchers decoder;
  ops::QuantizeLaunchers quantize;
  ops::BitLaunchers bits;
  ops::CompareLaunchers compare;
  ops::GptqLaunchers gptq;
  ops::Int8Launchers int8;
  ops::LlmInt8Launchers llm_int8;
  ops::HadamardLaunchers hadamard;
  ops::ScalingLaunchers scaling;
};

/// Linked where there are kernels only.
const Kernels& kernels();

}  // namespace quantaria::cuda
