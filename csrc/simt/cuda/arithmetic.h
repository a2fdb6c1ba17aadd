#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simt/values.h"

/// Arithmetic that C++ has no operator for. The names are those of simt/host/arithmetic.h.
namespace quantaria::simt {

/// The same bits as another type.
template <class To, class From>
__device__ __forceinline__ To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}

__device__ __forceinline__ float to_float(Half x) {
  float value;
  asm("cvt.f32.f16 %0,%1;" : "=f"(value) : "h"(x.bits));
  return value;
}

__device__ __forceinline__ float to_float(Bfloat16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}

__device__ __forceinline__ float to_float(float x) { return x; }

/// Two values of T (Half or Bfloat16), each rounded to nearest even, the first in the lower half.
template <class T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  uint32_t both;
  if constexpr (std::is_same_v<T, Half>)
    asm("cvt.rn.f16x2.f32 %0,%1,%2;" : "=r"(both) : "f"(high), "f"(low));
  else
    asm("cvt.rn.bf16x2.f32 %0,%1,%2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
}

/// x rounded to nearest even. T is Half, Bfloat16 or float.
template <class T>
__device__ __forceinline__ T from_float(float x) {
  if constexpr (std::is_same_v<T, float>)
    return x;
  else
    return T{static_cast<uint16_t>(pack<T>(x, 0))};
}

/// a b + c in both halves, each rounded once. T is Half or Bfloat16.
template <class T>
__device__ __forceinline__ uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  if constexpr (std::is_same_v<T, Half>)
    asm("fma.rn.f16x2 %0,%1,%2,%3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  else
    asm("fma.rn.bf16x2 %0,%1,%2,%3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

/// Bit i of the result is bit (a_i << 2 | b_i << 1 | c_i) of Table.
template <int Table>
__device__ __forceinline__ uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  uint32_t d;
  asm("lop3.b32 %0,%1,%2,%3,%4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(Table));
  return d;
}

/// Byte i of the result is the byte of b:a that the lower three bits of nibble i of the selector name.
__device__ __forceinline__ uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  return __byte_perm(a, b, selector);
}

}  // namespace quantaria::simt
