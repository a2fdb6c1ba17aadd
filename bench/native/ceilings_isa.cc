#include <immintrin.h>

#include <cstring>

#include "ceilings.h"

namespace quantaria::bench::QUANTARIA_ISA {
namespace {

#if defined(__AVX512F__)
using Register = __m512;
Register multiply_add(Register a, Register b, Register c) { return _mm512_fmadd_ps(a, b, c); }
#elif defined(__AVX2__)
using Register = __m256;
Register multiply_add(Register a, Register b, Register c) { return _mm256_fmadd_ps(a, b, c); }
#else
using Register = __m128;
Register multiply_add(Register a, Register b, Register c) { return _mm_add_ps(_mm_mul_ps(a, b), c); }
#endif
constexpr int kLanes = sizeof(Register) / sizeof(float);
constexpr int kAccumulators = 12;  // of 16 registers, or 32

float run(int64_t iterations) {
  Register s0 = Register{} + 0.0f, s1 = Register{} + 1.0f, s2 = Register{} + 2.0f, s3 = Register{} + 3.0f,
           s4 = Register{} + 4.0f, s5 = Register{} + 5.0f, s6 = Register{} + 6.0f, s7 = Register{} + 7.0f,
           s8 = Register{} + 8.0f, s9 = Register{} + 9.0f, s10 = Register{} + 10.0f, s11 = Register{} + 11.0f;
  const Register x = Register{} + 0.999f;
  const Register y = Register{} + 0.001f;
  // Named variables: an array of them would live in memory. The barrier keeps the compiler from looking
  // through the loop; it costs no instruction.
  const auto step = [&](Register& sum) {
    sum = multiply_add(sum, x, y);
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
  const Register total = s0 + s1 + s2 + s3 + s4 + s5 + s6 + s7 + s8 + s9 + s10 + s11;
  return total[0];
}

using Word [[gnu::vector_size(sizeof(Register))]] = int32_t;

int32_t read(const void* from, int64_t bytes) {
  constexpr int64_t kWord = sizeof(Word);
  const auto* at = static_cast<const char*>(from);
  const auto word = [&](int64_t i) {
    Word loaded;
    std::memcpy(&loaded, at + i * kWord, kWord);
    return loaded;
  };
  Word s0{}, s1{}, s2{}, s3{};
  for (const char* const end = at + bytes; at < end; at += 8 * kWord) {
    s0 += word(0) + word(4);
    s1 += word(1) + word(5);
    s2 += word(2) + word(6);
    s3 += word(3) + word(7);
  }
  const Word total = s0 + s1 + s2 + s3;
  return total[0];
}

}  // namespace

extern const CeilingKernels fma_ceiling;
const CeilingKernels fma_ceiling = {2.0 * kLanes * kAccumulators, run};
extern const ReadKernel read_ceiling;
const ReadKernel read_ceiling = read;

}  // namespace quantaria::bench::QUANTARIA_ISA
