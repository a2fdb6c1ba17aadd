#include <immintrin.h>

#include <cstring>

#include "ceilings.h"

namespace quantaria::bench {
namespace {

constexpr int kAccumulators = 12;

/// Two products a lane: vdpbf16ps.
float run_avx512bf16(int64_t iterations) {
  __m512 s0 = _mm512_set1_ps(0.0f), s1 = _mm512_set1_ps(1.0f), s2 = _mm512_set1_ps(2.0f),
         s3 = _mm512_set1_ps(3.0f), s4 = _mm512_set1_ps(4.0f), s5 = _mm512_set1_ps(5.0f),
         s6 = _mm512_set1_ps(6.0f), s7 = _mm512_set1_ps(7.0f), s8 = _mm512_set1_ps(8.0f),
         s9 = _mm512_set1_ps(9.0f), s10 = _mm512_set1_ps(10.0f), s11 = _mm512_set1_ps(11.0f);
  __m512bh x;
  const __m512i ones = _mm512_set1_epi32(0x3c003c00);
  std::memcpy(&x, &ones, sizeof x);
  // Named variables: an array of them would live in memory. The barrier keeps the compiler from looking
  // through the loop; it costs no instruction.
  const auto step = [&](__m512& sum) {
    sum = _mm512_dpbf16_ps(sum, x, x);
    __asm__ volatile("" : "+v"(sum));
  };
  for (int64_t n = 0; n < iterations; ++n) {
    step(s0);
    step(s1);
    step(s2);
    step(s3);
    step(s4);
    step(s5);
    step(s6);
    step(s7);
    step(s8);
    step(s9);
    step(s10);
    step(s11);
  }
  return _mm512_cvtss_f32(s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11);
}

}  // namespace

extern const CeilingKernels avx512bf16_ceiling;
const CeilingKernels avx512bf16_ceiling = {2.0 * 32 * kAccumulators, run_avx512bf16};

}  // namespace quantaria::bench
