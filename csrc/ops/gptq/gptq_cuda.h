#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "ops/gptq/gptq.h"

/// GPTQ in device memory (gptq.h has what it means). All pointers are to device memory, `stream` is a
/// simt::Stream. The same bits from run to run, and for a problem by itself or among others.
namespace quantaria::ops {

/// products [problems, in, in] += x^T x, each of its own rows of x [rows, in]: the first counts[0] rows are
/// problem 0's, the next counts[1] problem 1's, ..., as routing sorts the states of experts; rows behind them
/// are nobody's. counts int32 [problems], or null for one problem that has all rows. Upper triangles only. In
/// one launch; what a problem gets depends on its rows alone.
/// On tensor cores for float16 and bfloat16 with contiguous rows, whose products are exact, else by fused
/// multiply-add; sums in float32, in runs of 256 and 128 rows that are added up by themselves.
void add_outer_products_cuda(void* stream, const ConstMatrix& x, const int32_t* counts, int64_t problems,
                             float* products);

void hessian_of_cuda(void* stream, const float* products, int64_t in, int64_t samples, float* hessian);
void add_scaled_cuda(void* stream, const float* from, float factor, int64_t count, float* to);

/// The queue that a run's work is put on, and what it needs of its device.
struct GptqQueue {
  void* stream;
  Scratch scratch;
  /// Bytes of device memory to the host, once all that is queued has come to its end.
  std::function<void(const std::byte* from, std::byte* host, int64_t bytes)> copy_out;
};

/// As the functions of gptq.h, in tasks of the device's queue. Weights of one shape are worked on side by
/// side, launch for launch. The host reads once, at the end: the report. It says, too, whether a Hessian was
/// not positive definite; the kernels behind its factorisation have then done nothing, and the run is queued
/// again with more damping, for the problems that need it. block_size counts as 128.
///
/// Memory beside the results: per problem 4 bytes for each element of the Hessian, 5 for each weight, 4 more
/// where constants are round-to-nearest's or groups have more than 128 columns, and up to 4 KiB a row.
std::vector<GptqReport> quantize_int_gptq_cuda(const GptqQueue& queue, std::span<const GptqProblem> problems,
                                               const IntScheme& scheme, const GptqOptions& options);

GptqReport quantize_codebook_gptq_cuda(const GptqQueue& queue, const GptqInput& input,
                                       const CodebookScheme& scheme, const CodebookStored& to,
                                       const GptqOptions& options);
GptqReport quantize_fp8_gptq_cuda(const GptqQueue& queue, const GptqInput& input, const Fp8Scheme& scheme,
                                  const Fp8Stored& to, const GptqOptions& options);
GptqReport quantize_mx_gptq_cuda(const GptqQueue& queue, const GptqInput& input, const MxScheme& scheme,
                                 const MxStored& to, const GptqOptions& options);

double output_error_cuda(const GptqQueue& queue, const ConstMatrix& a, const ConstMatrix* b,
                         const float* products);

/// All of them, as a device hands them out (cuda/kernels.h).
struct GptqLaunchers {
  decltype(&add_outer_products_cuda) add_outer_products;
  decltype(&hessian_of_cuda) hessian_of;
  decltype(&add_scaled_cuda) add_scaled;
  decltype(&output_error_cuda) output_error;
  decltype(&quantize_int_gptq_cuda) integers;
  decltype(&quantize_codebook_gptq_cuda) codebook;
  decltype(&quantize_fp8_gptq_cuda) fp8;
  decltype(&quantize_mx_gptq_cuda) mx;
};
inline constexpr GptqLaunchers kGptqLaunchers{add_outer_products_cuda, hessian_of_cuda,
                                              add_scaled_cuda,         output_error_cuda,
                                              quantize_int_gptq_cuda,  quantize_codebook_gptq_cuda,
                                              quantize_fp8_gptq_cuda,  quantize_mx_gptq_cuda};

}  // namespace quantaria::ops
