#pragma once

#include <utility>

#include "cpu/lanes.h"
#include "ops/gemm/tile.h"

/// The integer micro-kernel, for the files that compile it: with VNNI one instruction a step, else two
/// products of 16-bit pairs.
namespace quantaria::ops::QUANTARIA_ISA {

#if defined(__AVX512F__)
inline constexpr int kInt8Rows = 12, kInt8Vectors = 2;
#elif defined(__AVX2__)
inline constexpr int kInt8Rows = 4, kInt8Vectors = 1;
#else
inline constexpr int kInt8Rows = 2, kInt8Vectors = 1;
#endif
inline constexpr int kInt8Columns = kInt8Vectors * kLanes;

#if defined(__AVX512VNNI__)

using SignedBytes = Ints;
using UnsignedBytes = Ints;
QUANTARIA_LANES SignedBytes signed_bytes(int32_t word) { return splat(word); }
QUANTARIA_LANES UnsignedBytes unsigned_bytes(const int32_t* from) { return load(from); }

/// sum + the four products of each lane.
QUANTARIA_LANES Ints dot(const Ints& sum, const SignedBytes& a, const UnsignedBytes& b) {
  return {{reinterpret_cast<IntRegister>(_mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum.part[0]),
                                                             reinterpret_cast<__m512i>(b.part[0]),
                                                             reinterpret_cast<__m512i>(a.part[0])))}};
}

#else

/// Bytes 0, 2 and 1, 3 of each word, widened to 16 bits: the byte product of AVX2 would saturate.
struct SignedBytes {
  Ints even, odd;
};
using UnsignedBytes = SignedBytes;

QUANTARIA_LANES SignedBytes signed_bytes(int32_t word) {
  const auto pair = [](int32_t low, int32_t high) {
    return splat(
        static_cast<int32_t>((static_cast<uint32_t>(high) << 16) | (static_cast<uint32_t>(low) & 0xffff)));
  };
  return {pair(static_cast<int8_t>(word), static_cast<int8_t>(word >> 16)),
          pair(static_cast<int8_t>(word >> 8), static_cast<int8_t>(word >> 24))};
}
QUANTARIA_LANES UnsignedBytes unsigned_bytes(const int32_t* from) {
  const Ints words = load(from);
  const Ints low = splat(int32_t{0x00ff00ff});
  return {words & low, shift_right(words, 8) & low};
}

QUANTARIA_LANES Ints multiply_pairs(const Ints& a, const Ints& b) {
  return each<Ints>(
      [](auto x, auto y) {
#if defined(__AVX512F__)
        return reinterpret_cast<IntRegister>(
            _mm512_madd_epi16(reinterpret_cast<__m512i>(x), reinterpret_cast<__m512i>(y)));
#elif defined(__AVX2__)
        return reinterpret_cast<IntRegister>(
            _mm256_madd_epi16(reinterpret_cast<__m256i>(x), reinterpret_cast<__m256i>(y)));
#else
        return reinterpret_cast<IntRegister>(
            _mm_madd_epi16(reinterpret_cast<__m128i>(x), reinterpret_cast<__m128i>(y)));
#endif
      },
      a, b);
}
QUANTARIA_LANES Ints dot(const Ints& sum, const SignedBytes& a, const UnsignedBytes& b) {
  return sum + multiply_pairs(a.even, b.even) + multiply_pairs(a.odd, b.odd);
}

#endif

template <int rows>
static void multiply_int8(const GroupedInt8& g, const void* a_panel, const void* b_panel, float* c,
                          bool accumulate) {
  const int32_t* a = static_cast<const int32_t*>(a_panel);
  const int32_t* b = static_cast<const int32_t*>(b_panel);
  for (int64_t group = 0; group < g.groups; ++group) {
    // One zero point for all is taken off in integers, so that sums without it stay exact.
    Ints sum[rows][kInt8Vectors];
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const int32_t start =
          g.b_zeros == nullptr ? -g.zero * static_cast<int32_t>(g.a_sums[group * rows + r]) : 0;
#pragma GCC unroll 4
      for (int v = 0; v < kInt8Vectors; ++v) sum[r][v] = splat(start);
    }
    for (int64_t s = 0; s < g.steps_per_group; ++s, a += rows, b += kInt8Columns) {
      UnsignedBytes column[kInt8Vectors];
#pragma GCC unroll 4
      for (int v = 0; v < kInt8Vectors; ++v) column[v] = unsigned_bytes(b + v * kLanes);
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        const SignedBytes x = signed_bytes(a[r]);
#pragma GCC unroll 4
        for (int v = 0; v < kInt8Vectors; ++v) sum[r][v] = dot(sum[r][v], x, column[v]);
      }
    }
    const float* const b_scales = g.b_scales + group * kInt8Columns;
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r) {
      const Floats a_scale = splat(g.a_scales[group * rows + r]);
      const Floats a_sum = splat(-g.a_sums[group * rows + r]);
#pragma GCC unroll 4
      for (int v = 0; v < kInt8Vectors; ++v) {
        float* const to = c + r * kInt8Columns + v * kLanes;
        Floats plain = to_floats(sum[r][v]);
        if (g.b_zeros != nullptr)
          plain = multiply_add(load(g.b_zeros + group * kInt8Columns + v * kLanes), a_sum, plain);
        const Floats before = group > 0 || accumulate ? load(to) : splat(0.0f);
        store(to, multiply_add(plain * a_scale, load(b_scales + v * kLanes), before));
      }
    }
  }
}

template <int... i>
static constexpr Int8Tiles int8_tiles_of(std::integer_sequence<int, i...>) {
  return {kInt8Rows, kInt8Columns, {multiply_int8<i + 1>...}};
}

}  // namespace quantaria::ops::QUANTARIA_ISA
