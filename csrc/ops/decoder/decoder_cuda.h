#pragma once

#include <cstdint>

#include "ops/decoder/decoder.h"

/// What a decoder does between its products, in device memory: the contracts of ops/decoder/decoder.h, in
/// float32 (sums over rows in float64), rounded once; the same bits at every run, but not those of the CPU.
/// `stream` is a simt::Stream.
namespace quantaria::ops {

void rms_norm_cuda(void* stream, const ConstMatrix& x, const ConstMatrix& gain, float eps, const Matrix& y);

void rotate_cuda(void* stream, const ConstMatrix& x, const float* cosines, const float* sines,
                 const Rotary& rotary, const Matrix& y);

/// Keys go by in tiles, with the softmax's maximum so far; a key that a query does not see never reaches it.
void attend_cuda(void* stream, const ConstMatrix& q, const ConstMatrix& k, const ConstMatrix& v,
                 const Attention& attention, const Matrix& y);

/// *wrong is set to 1 for an id that the table does not have, whose row is then zeros, and else left as it
/// is.
void embed_cuda(void* stream, const ConstMatrix& table, const int32_t* ids, uint32_t* wrong, const Matrix& y);

void add_cuda(void* stream, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* gates,
              const Matrix& y);

void swiglu_cuda(void* stream, const ConstMatrix& gate, const ConstMatrix& up, const Matrix& y);

/// *wrong is set to 1 for a target that is no column, whose row is then undefined, and else left as it is.
void score_tokens_cuda(void* stream, const float* logits, const float* baseline, int64_t rows,
                       int64_t vocabulary, const int32_t* targets, uint32_t* wrong, TokenScore* scores);

/// The launchers above.
struct CudaDecoderKernels {
  decltype(&rms_norm_cuda) rms_norm;
  decltype(&rotate_cuda) rotate;
  decltype(&attend_cuda) attend;
  decltype(&embed_cuda) embed;
  decltype(&add_cuda) add;
  decltype(&swiglu_cuda) swiglu;
  decltype(&score_tokens_cuda) score_tokens;
};

}  // namespace quantaria::ops
