#pragma once

#include "ops/gptq/kernels.h"
#include "ops/quantize/lanes.h"

/// For *_isa.cc files only.
namespace quantaria::ops::QUANTARIA_ISA {

/// a * b + c, rounded once where the instruction set can.
QUANTARIA_LANES FloatRegister multiply_add(FloatRegister a, FloatRegister b, FloatRegister c) {
#if defined(__AVX512F__)
  return reinterpret_cast<FloatRegister>(
      _mm512_fmadd_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b), reinterpret_cast<__m512>(c)));
#elif defined(__FMA__)
  return reinterpret_cast<FloatRegister>(
      _mm256_fmadd_ps(reinterpret_cast<__m256>(a), reinterpret_cast<__m256>(b), reinterpret_cast<__m256>(c)));
#else
  return a * b + c;
#endif
}

QUANTARIA_LANES FloatRegister load_register(const float* from) {
  FloatRegister x;
  std::memcpy(&x, from, sizeof x);
  return x;
}

void strip_product(int64_t strips, int64_t depth, int64_t cols, float alpha, const float* a, int64_t a_apart,
                   const float* b, int64_t b_apart, float* c, int64_t c_apart);

}  // namespace quantaria::ops::QUANTARIA_ISA
