#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "numerics/bfloat16.h"
#include "numerics/half.h"
#include "simt/emulator/rounding.h"
#include "simt/values.h"

/// Arithmetic that C++ has no operator for. The names are those of simt/cuda/arithmetic.h.
namespace quantaria::simt {

/// The same bits as another type.
template <class To, class From>
To bits(const From& from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

inline float to_float(Half x) { return numerics::float_from_half(x.bits); }
inline float to_float(Bfloat16 x) { return numerics::float_from_bfloat16(x.bits); }
inline float to_float(float x) { return x; }

/// x rounded to nearest even. T is Half, Bfloat16 or float.
template <class T>
T from_float(float x) {
  if constexpr (std::is_same_v<T, Half>)
    return {numerics::half_from_float(x)};
  else if constexpr (std::is_same_v<T, Bfloat16>)
    return {numerics::bfloat16_from_float(x)};
  else
    return x;
}

/// Two values of T (Half or Bfloat16), each rounded to nearest even, the first in the lower half.
template <class T>
uint32_t pack(float low, float high) {
  return uint32_t{from_float<T>(low).bits} | uint32_t{from_float<T>(high).bits} << 16;
}

/// a b + c in both halves, each rounded once. T is Half or Bfloat16.
template <class T>
uint32_t fma2(uint32_t a, uint32_t b, uint32_t c) {
  constexpr auto fma = std::is_same_v<T, Half> ? emulator::fma_half : emulator::fma_bfloat16;
  const auto half = [&](int shift) {
    return uint32_t{fma(static_cast<uint16_t>(a >> shift), static_cast<uint16_t>(b >> shift),
                        static_cast<uint16_t>(c >> shift))};
  };
  return half(0) | half(16) << 16;
}

/// Bit i of the result is bit (a_i << 2 | b_i << 1 | c_i) of Table.
template <int Table>
uint32_t lop3(uint32_t a, uint32_t b, uint32_t c) {
  static_assert(Table >= 0 && Table < 256);
  uint32_t d = 0;
  for (int i = 0; i < 8; ++i)
    if ((Table >> i & 1) != 0)
      d |= ((i & 4) != 0 ? a : ~a) & ((i & 2) != 0 ? b : ~b) & ((i & 1) != 0 ? c : ~c);
  return d;
}

/// Byte i of the result is the byte of b:a that the lower three bits of nibble i of the selector name.
inline uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  uint32_t d = 0;
  for (int i = 0; i < 4; ++i) {
    const uint32_t place = selector >> 4 * i & 7;
    d |= static_cast<uint32_t>(bytes >> 8 * place & 0xff) << 8 * i;
  }
  return d;
}

}  // namespace quantaria::simt
