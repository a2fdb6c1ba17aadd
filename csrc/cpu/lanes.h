#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "numerics/bits.h"
#include "numerics/half.h"

/// Sixteen lanes of float32 or int32, the unit in which every row kernel works whatever the registers'
/// width: one AVX-512 register, two of AVX2 or four of SSE2, by the compiler's vector extension. Sums
/// kept in sixteen lanes therefore have the same bits on each.
///
/// For *_isa.cc files only: the names live in a namespace of the instruction set.
namespace quantaria::ops::QUANTARIA_ISA {

inline constexpr int kLanes = 16;

#if defined(__AVX512F__)
inline constexpr int kRegisterBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kRegisterBytes = 32;
#else
inline constexpr int kRegisterBytes = 16;
#endif
inline constexpr int kPerRegister = kRegisterBytes / 4;
inline constexpr int kRegisters = kLanes / kPerRegister;

using FloatRegister [[gnu::vector_size(kRegisterBytes)]] = float;
using IntRegister [[gnu::vector_size(kRegisterBytes)]] = int32_t;

#define QUANTARIA_LANES [[gnu::always_inline]] static inline

struct Ints {
  IntRegister part[kRegisters];
};
struct Floats {
  FloatRegister part[kRegisters];
};

/// Applies f to each register of the arguments.
template <class Result, class F, class... Args>
QUANTARIA_LANES Result each(F&& f, const Args&... args) {
  Result result;
  for (int i = 0; i < kRegisters; ++i) result.part[i] = f(args.part[i]...);
  return result;
}

QUANTARIA_LANES Floats splat(float x) {
  Floats result;
  for (int i = 0; i < kRegisters; ++i) result.part[i] = x - FloatRegister{};
  return result;
}
QUANTARIA_LANES Ints splat(int32_t x) {
  Ints result;
  for (int i = 0; i < kRegisters; ++i) result.part[i] = x - IntRegister{};
  return result;
}

QUANTARIA_LANES Floats load(const float* from) {
  Floats result;
  std::memcpy(&result, from, sizeof result);
  return result;
}
/// The first `count` < 16 lanes from memory, 0 in the rest.
QUANTARIA_LANES Floats load_some(const float* from, int64_t count) {
  alignas(64) float padded[kLanes] = {};
  std::memcpy(padded, from, static_cast<size_t>(count) * sizeof(float));
  return load(padded);
}
QUANTARIA_LANES void store(float* to, const Floats& x) { std::memcpy(to, &x, sizeof x); }
QUANTARIA_LANES void store_some(float* to, const Floats& x, int64_t count) {
  std::memcpy(to, &x, static_cast<size_t>(count) * sizeof(float));
}

// Changes of width are spelled out: g++ 12 takes vectors apart for __builtin_convertvector here.

/// Sixteen bytes or 16-bit values from the low bits of the lanes.
#if defined(__AVX512F__)
QUANTARIA_LANES void store_low(uint8_t* to, const Ints& x) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to),
                   _mm512_cvtepi32_epi8(reinterpret_cast<__m512i>(x.part[0])));
}
QUANTARIA_LANES void store_low(uint16_t* to, const Ints& x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      _mm512_cvtepi32_epi16(reinterpret_cast<__m512i>(x.part[0])));
}
#else
QUANTARIA_LANES void store_low(uint16_t* to, const Ints& x) {
  __m128i quarter[4];
  std::memcpy(quarter, &x, sizeof x);
  // Sign-extended from 16 bits, so that packing with signed saturation leaves them as they are.
  for (__m128i& q : quarter) q = _mm_srai_epi32(_mm_slli_epi32(q, 16), 16);
  const __m128i halves[2] = {_mm_packs_epi32(quarter[0], quarter[1]),
                             _mm_packs_epi32(quarter[2], quarter[3])};
  std::memcpy(to, halves, sizeof halves);
}
QUANTARIA_LANES void store_low(uint8_t* to, const Ints& x) {
  __m128i quarter[4];
  std::memcpy(quarter, &x, sizeof x);
  for (__m128i& q : quarter) q = _mm_and_si128(q, _mm_set1_epi32(0xff));
  const __m128i low = _mm_packs_epi32(quarter[0], quarter[1]);
  const __m128i high = _mm_packs_epi32(quarter[2], quarter[3]);
  const __m128i bytes = _mm_packus_epi16(low, high);
  std::memcpy(to, &bytes, sizeof bytes);
}
#endif

/// Sixteen unsigned values.
QUANTARIA_LANES Ints widen(const uint8_t* from) {
  __m128i bytes;
  std::memcpy(&bytes, from, sizeof bytes);
#if defined(__AVX512F__)
  return {{reinterpret_cast<IntRegister>(_mm512_cvtepu8_epi32(bytes))}};
#elif defined(__AVX2__)
  return {{reinterpret_cast<IntRegister>(_mm256_cvtepu8_epi32(bytes)),
           reinterpret_cast<IntRegister>(_mm256_cvtepu8_epi32(_mm_srli_si128(bytes, 8)))}};
#else
  const __m128i zero = _mm_setzero_si128();
  const __m128i low = _mm_unpacklo_epi8(bytes, zero);
  const __m128i high = _mm_unpackhi_epi8(bytes, zero);
  const __m128i quarters[4] = {_mm_unpacklo_epi16(low, zero), _mm_unpackhi_epi16(low, zero),
                               _mm_unpacklo_epi16(high, zero), _mm_unpackhi_epi16(high, zero)};
  Ints result;
  std::memcpy(&result, quarters, sizeof result);
  return result;
#endif
}

/// Sixteen floats of their upper halves.
QUANTARIA_LANES Floats load_bfloat16(const uint16_t* from) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {{reinterpret_cast<FloatRegister>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))}};
#elif defined(__AVX2__)
  Floats result;
  for (int i = 0; i < kRegisters; ++i) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * kPerRegister));
    result.part[i] = reinterpret_cast<FloatRegister>(_mm256_slli_epi32(_mm256_cvtepu16_epi32(halves), 16));
  }
  return result;
#else
  __m128i halves[2];
  std::memcpy(halves, from, sizeof halves);
  const __m128i zero = _mm_setzero_si128();
  const __m128i quarters[4] = {_mm_unpacklo_epi16(zero, halves[0]), _mm_unpackhi_epi16(zero, halves[0]),
                               _mm_unpacklo_epi16(zero, halves[1]), _mm_unpackhi_epi16(zero, halves[1])};
  Floats result;
  std::memcpy(&result, quarters, sizeof result);
  return result;
#endif
}

/// Sixteen float16.
QUANTARIA_LANES Floats load_half(const uint16_t* from) {
#if defined(__AVX512F__)
  const __m256i halves = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  return {{reinterpret_cast<FloatRegister>(_mm512_cvtph_ps(halves))}};
#elif defined(__AVX2__)
  Floats result;
  for (int i = 0; i < kRegisters; ++i) {
    const __m128i halves = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * kPerRegister));
    result.part[i] = reinterpret_cast<FloatRegister>(_mm256_cvtph_ps(halves));
  }
  return result;
#else
  uint16_t halves[kLanes];
  std::memcpy(halves, from, sizeof halves);
  float values[kLanes];
  for (int i = 0; i < kLanes; ++i) values[i] = numerics::float_from_half(halves[i]);
  return load(values);
#endif
}

QUANTARIA_LANES Floats operator+(const Floats& a, const Floats& b) {
  return each<Floats>([](auto x, auto y) { return x + y; }, a, b);
}
QUANTARIA_LANES Floats operator-(const Floats& a, const Floats& b) {
  return each<Floats>([](auto x, auto y) { return x - y; }, a, b);
}
QUANTARIA_LANES Floats operator*(const Floats& a, const Floats& b) {
  return each<Floats>([](auto x, auto y) { return x * y; }, a, b);
}
QUANTARIA_LANES Floats operator/(const Floats& a, const Floats& b) {
  return each<Floats>([](auto x, auto y) { return x / y; }, a, b);
}
QUANTARIA_LANES Ints operator+(const Ints& a, const Ints& b) {
  return each<Ints>([](auto x, auto y) { return x + y; }, a, b);
}
QUANTARIA_LANES Ints operator-(const Ints& a, const Ints& b) {
  return each<Ints>([](auto x, auto y) { return x - y; }, a, b);
}
QUANTARIA_LANES Ints operator&(const Ints& a, const Ints& b) {
  return each<Ints>([](auto x, auto y) { return x & y; }, a, b);
}
QUANTARIA_LANES Ints operator|(const Ints& a, const Ints& b) {
  return each<Ints>([](auto x, auto y) { return x | y; }, a, b);
}
/// All ones where true.
QUANTARIA_LANES Ints operator>(const Floats& a, const Floats& b) {
  return each<Ints>([](auto x, auto y) -> IntRegister { return x > y; }, a, b);
}
QUANTARIA_LANES Floats smaller(const Floats& a, const Floats& b) {
  return each<Floats>([](auto x, auto y) { return x < y ? x : y; }, a, b);
}
QUANTARIA_LANES Floats larger(const Floats& a, const Floats& b) {
  return each<Floats>([](auto x, auto y) { return x > y ? x : y; }, a, b);
}
QUANTARIA_LANES Ints larger(const Ints& a, const Ints& b) {
  return each<Ints>([](auto x, auto y) { return x > y ? x : y; }, a, b);
}
QUANTARIA_LANES Ints bits(const Floats& x) {
  return each<Ints>([](auto v) { return reinterpret_cast<IntRegister>(v); }, x);
}
QUANTARIA_LANES Floats as_floats(const Ints& x) {
  return each<Floats>([](auto v) { return reinterpret_cast<FloatRegister>(v); }, x);
}
QUANTARIA_LANES Floats to_floats(const Ints& x) {
  return each<Floats>([](auto v) { return __builtin_convertvector(v, FloatRegister); }, x);
}
QUANTARIA_LANES Ints truncate(const Floats& x) {
  return each<Ints>([](auto v) { return __builtin_convertvector(v, IntRegister); }, x);
}

QUANTARIA_LANES Ints magnitude_bits(const Floats& x) { return bits(x) & splat(int32_t{0x7fffffff}); }

/// table[index mod 16] for each lane.
QUANTARIA_LANES Floats look_up(const Floats& table, const Ints& index) {
#if defined(__AVX512F__)
  return {{__builtin_shuffle(table.part[0], index.part[0])}};
#elif defined(__AVX2__)
  return each<Floats>([&](auto i) { return __builtin_shuffle(table.part[0], table.part[1], i); }, index);
#else
  float values[kLanes];
  int32_t at[kLanes];
  std::memcpy(values, &table, sizeof values);
  std::memcpy(at, &index, sizeof at);
  float found[kLanes];
  for (int i = 0; i < kLanes; ++i) found[i] = values[at[i] & (kLanes - 1)];
  return load(found);
#endif
}

/// Combines the sixteen lanes in a fixed tree, lane i with lane i + 8, then 4, 2 and 1 apart, whatever the
/// registers' width: the order in which float sums round.
template <class Lanes, class Combine>
QUANTARIA_LANES auto fold(const Lanes& x, Combine&& combine) {
  Lanes folded = x;
  for (int half = kRegisters / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) folded.part[i] = combine(folded.part[i], folded.part[i + half]);
  auto total = folded.part[0];
  for (int apart = kPerRegister / 2; apart > 0; apart /= 2) {
    IntRegister rotated;
    for (int i = 0; i < kPerRegister; ++i) rotated[i] = (i + apart) % kPerRegister;
    total = combine(total, __builtin_shuffle(total, rotated));
  }
  return total[0];
}
QUANTARIA_LANES float sum_of(const Floats& x) {
  return fold(x, [](auto a, auto b) { return a + b; });
}
QUANTARIA_LANES int32_t largest_of(const Ints& x) {
  return fold(x, [](auto a, auto b) { return a > b ? a : b; });
}
QUANTARIA_LANES float smallest_of(const Floats& x) {
  return fold(x, [](auto a, auto b) { return a < b ? a : b; });
}
QUANTARIA_LANES float largest_of(const Floats& x) {
  return fold(x, [](auto a, auto b) { return a > b ? a : b; });
}

/// a * b + c, rounded once where the instruction set can (from AVX2 on).
QUANTARIA_LANES Floats multiply_add(const Floats& a, const Floats& b, const Floats& c) {
#if defined(__AVX512F__)
  return {{reinterpret_cast<FloatRegister>(_mm512_fmadd_ps(reinterpret_cast<__m512>(a.part[0]),
                                                           reinterpret_cast<__m512>(b.part[0]),
                                                           reinterpret_cast<__m512>(c.part[0])))}};
#elif defined(__FMA__)
  return each<Floats>(
      [](auto x, auto y, auto z) {
        return reinterpret_cast<FloatRegister>(_mm256_fmadd_ps(
            reinterpret_cast<__m256>(x), reinterpret_cast<__m256>(y), reinterpret_cast<__m256>(z)));
      },
      a, b, c);
#else
  return a * b + c;
#endif
}

QUANTARIA_LANES Ints load(const int32_t* from) {
  Ints result;
  std::memcpy(&result, from, sizeof result);
  return result;
}
QUANTARIA_LANES Ints load(const uint32_t* from) { return load(reinterpret_cast<const int32_t*>(from)); }
QUANTARIA_LANES void store(int32_t* to, const Ints& x) { std::memcpy(to, &x, sizeof x); }
QUANTARIA_LANES void store(uint32_t* to, const Ints& x) { std::memcpy(to, &x, sizeof x); }

/// Shifts that bring in zeros, by the same count in all lanes.
QUANTARIA_LANES Ints shift_right(const Ints& x, int count) {
  using Unsigned [[gnu::vector_size(kRegisterBytes)]] = uint32_t;
  return each<Ints>(
      [=](auto v) { return reinterpret_cast<IntRegister>(reinterpret_cast<Unsigned>(v) >> count); }, x);
}
QUANTARIA_LANES Ints shift_left(const Ints& x, int count) {
  return each<Ints>([=](auto v) { return v << count; }, x);
}

/// Calls body(first, x) for each sixteen elements x of from[0, n); the last may be padded with zeros.
template <class Body>
QUANTARIA_LANES void for_each_lanes(const float* from, int64_t n, Body&& body) {
  int64_t first = 0;
  for (; first + kLanes <= n; first += kLanes) body(first, load(from + first));
  if (first < n) body(first, load_some(from + first, n - first));
}

}  // namespace quantaria::ops::QUANTARIA_ISA
