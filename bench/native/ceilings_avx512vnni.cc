#include <immintrin.h>

#include "ceilings.h"

namespace quantaria::bench {
namespace {

constexpr int kAccumulators = 12;

/// Four products a lane: vpdpbusd.
float run_avx512vnni(int64_t iterations) {
  __m512i s0 = _mm512_set1_epi32(0), s1 = _mm512_set1_epi32(1), s2 = _mm512_set1_epi32(2),
          s3 = _mm512_set1_epi32(3), s4 = _mm512_set1_epi32(4), s5 = _mm512_set1_epi32(5),
          s6 = _mm512_set1_epi32(6), s7 = _mm512_set1_epi32(7), s8 = _mm512_set1_epi32(8),
          s9 = _mm512_set1_epi32(9), s10 = _mm512_set1_epi32(10), s11 = _mm512_set1_epi32(11);
  const __m512i x = _mm512_set1_epi8(3);
  const __m512i y = _mm512_set1_epi8(-5);
  // Named variables: an array of them would live in memory. The barrier keeps the compiler from looking
  // through the loop; it costs no instruction.
  const auto step = [&](__m512i& sum) {
    sum = _mm512_dpbusd_epi32(sum, x, y);
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
  return static_cast<float>(
      _mm512_cvtsi512_si32(s0 ^ s1 ^ s2 ^ s3 ^ s4 ^ s5 ^ s6 ^ s7 ^ s8 ^ s9 ^ s10 ^ s11));
}

}  // namespace

extern const CeilingKernels avx512vnni_ceiling;
const CeilingKernels avx512vnni_ceiling = {2.0 * 64 * kAccumulators, run_avx512vnni};

}  // namespace quantaria::bench
