#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "core/matrix.h"
#include "core/storage.h"
#include "ops/dequant_matmul/coded_matrix.h"
#include "ops/moe/experts.h"

/// The products of a mixture-of-experts layer in device memory. Counts of tokens stay there: nothing waits
/// for the host, and launches are as many whatever the tokens. `stream` is a simt::Stream.
namespace quantaria::ops {

/// A right factor: dense [in, out] with one unit stride or any, or quantized [out, in].
struct ExpertMatrix {
  ConstMatrix dense;
  std::shared_ptr<const DeviceWeight> coded;  // null for a dense one

  int64_t in() const { return coded ? coded->matrix.in : dense.rows; }
  int64_t out() const { return coded ? coded->matrix.out : dense.cols; }
};

/// One after the other, for each expert.
struct ExpertMatrices {
  std::vector<ExpertMatrix> gate;  // [hidden, inter]
  std::vector<ExpertMatrix> up;
  std::vector<ExpertMatrix> down;  // [inter, hidden]
};

/// What lies between the two products: float32 sends the second one through float32 FMA.
inline DType between_products(DType x, Operand operand) {
  return operand == Operand::bfloat16 ? x : DType::float32;
}

/// Memory for that many bytes, which may be given back when the call returns: whoever gives it out takes care
/// that nobody else gets it before the stream has come past.
using Allocate = std::function<std::shared_ptr<Storage>(int64_t)>;

/// The contract of experts (ops/moe/experts.h). Right factors are decoded, and multiplied on tensor cores
/// where gemm_cuda and dequant_matmul_cuda do so, experts of one kind (dtype and strides, or scheme) in one
/// launch each for gate and up, with SwiGLU, and for down: one each if all are alike. If an expert's gate and
/// up are of different kinds, they are multiplied one after the other, and SwiGLU is a launch of its own. A
/// last launch adds each token's results in the order of k, so the bits are the same at every run.
///
/// Weights with left_columns want x, and what lies between the products, in 16 bits: rows are gathered in
/// their order first, those of gate and up once if both have one order.
///
/// operand: bfloat16 stands for the 16 bits that x has. What lies between the products is between_products'
/// (float16 overflows there beyond 65504).
/// int8 quantizes x, each row once, and what lies between the products, over the groups of the weights, which
/// are all integers without int8_obstacle (dequant_matmul.h); sums are those of int8_matmul_cuda.
/// Slots that are not sorted give undefined results, in bounds.
void experts_cuda(void* stream, const ConstMatrix& x, const Slots& slots, const ExpertMatrices& experts,
                  Operand operand, const Allocate& allocate, const Matrix& y);

/// The contract of grouped_matmul, but for the error: `verdict` (cuda/verdict.h) refuses its element 0 if
/// counts are negative or do not add up to x's rows; y is then undefined.
void grouped_matmul_cuda(void* stream, const ConstMatrix& x, const int32_t* counts,
                         const std::vector<ExpertMatrix>& factors, Operand operand, std::byte* verdict,
                         const Allocate& allocate, const Matrix& y);

}  // namespace quantaria::ops
