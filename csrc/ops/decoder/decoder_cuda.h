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

/// `verdict` (cuda/verdict.h) refuses the first id that the table does not have; its row is zeros.
void embed_cuda(void* stream, const ConstMatrix& table, const int32_t* ids, std::byte* verdict,
                const Matrix& y);

void add_cuda(void* stream, const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* gates,
              const Matrix& y);

void swiglu_cuda(void* stream, const ConstMatrix& gate, const ConstMatrix& up, const Matrix& y);

/// `verdict` refuses the first target that is no column; its row is undefined.
void score_tokens_cuda(void* stream, const float* logits, const float* baseline, int64_t rows,
                       int64_t vocabulary, const int32_t* targets, std::byte* verdict, TokenScore* scores);

/// All of them, as a device hands them out (cuda/kernels.h).
struct DecoderLaunchers {
  decltype(&rms_norm_cuda) rms_norm;
  decltype(&rotate_cuda) rotate;
  decltype(&attend_cuda) attend;
  decltype(&embed_cuda) embed;
  decltype(&add_cuda) add;
  decltype(&swiglu_cuda) swiglu;
  decltype(&score_tokens_cuda) score_tokens;
};
inline constexpr DecoderLaunchers kDecoderLaunchers{rms_norm_cuda, rotate_cuda, attend_cuda,      embed_cuda,
                                                    add_cuda,      swiglu_cuda, score_tokens_cuda};

}  // namespace quantaria::ops
