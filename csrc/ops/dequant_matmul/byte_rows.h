#pragma once

#include <utility>

#include "ops/dequant_matmul/bytes.h"

/// Products of many int8 rows with a weight's codes, for the files that compile them. Codes go straight from
/// the weight's tile into the product, four and eight bits as they are stored, so that a tile is read once
/// for as many rows as there are registers and nothing is unpacked to memory.
namespace quantaria::ops::QUANTARIA_ISA {

// Rows and tiles side by side whose sums are kept in registers. A code's bytes cost more to prepare without
// VNNI, so that two tiles share those of the activations there.
#if defined(__AVX512VNNI__)
inline constexpr int kByteRows = 16, kByteTiles = 2, kSideBySide = 1;
#elif defined(__AVX512F__)
inline constexpr int kByteRows = 12, kByteTiles = 2, kSideBySide = 2;
#elif defined(__AVX2__)
inline constexpr int kByteRows = 4, kByteTiles = 1, kSideBySide = 1;
#else
inline constexpr int kByteRows = 2, kByteTiles = 1, kSideBySide = 1;
#endif

#if defined(__AVX512VNNI__)

using SignedBytes = Ints;
using UnsignedBytes = Ints;
QUANTARIA_LANES SignedBytes signed_bytes(int32_t word) { return splat(word); }
QUANTARIA_LANES UnsignedBytes unsigned_bytes(const Ints& words) { return words; }

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
QUANTARIA_LANES UnsignedBytes unsigned_bytes(const Ints& words) {
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

/// Groups' zero points: each its own, or the table's for all.
enum class Zeros : bool { of_table, of_groups };

/// factor * sums, in integers.
template <int rows>
QUANTARIA_LANES void scaled_sums(const float* sums, int32_t factor, int32_t (&to)[kLanes]) {
  const Floats all = rows == kLanes ? load(sums) : load_some(sums, rows);
  store(to, each<Ints>([=](auto x) { return x * factor; }, truncate(all)));
}

/// kSideBySide tiles; c has as many rows of kByteTiles * kLanes sums.
template <int bits, int rows, Zeros zeros>
static void multiply_side_by_side(const TileView* tiles, const Span& span, const FewRowsInput& input,
                                  float* c) {
  using U = Unit<bits>;
  constexpr int kSteps = U::kCodes / 4;
  constexpr int kColumns = kByteTiles * kLanes;
  const auto zero = static_cast<int32_t>(-span.table[0]);
  const int64_t groups = span.groups;
  const int64_t units = span.units_per_group;
  const int32_t* x = static_cast<const int32_t*>(input.x);
  const float* a_sums = input.sums;
  const float* a_scales = input.scales;
  const uint32_t* words[kSideBySide];
  const int32_t* group_zeros[kSideBySide];
  for (int t = 0; t < kSideBySide; ++t) {
    words[t] = tiles[t].words;
    group_zeros[t] = tiles[t].zeros;
  }
  bool fresh = !input.accumulate;
  for (int64_t g = 0; g < groups; ++g, a_sums += rows, a_scales += rows) {
    Ints sum[rows][kSideBySide];
    alignas(64) int32_t start[kLanes];
    // One zero point for all is taken off in integers, so that sums without it stay exact.
    if (zeros == Zeros::of_table) scaled_sums<rows>(a_sums, -zero, start);
    asm("" : "+m"(start));  // to be broadcast from memory, which takes no port that the products want
#pragma GCC unroll 16
    for (int r = 0; r < rows; ++r)
#pragma GCC unroll 2
      for (int t = 0; t < kSideBySide; ++t) sum[r][t] = splat(zeros == Zeros::of_table ? start[r] : 0);
    for (int64_t u = 0; u < units; ++u) {
      Ints unit[kSideBySide][U::kWords];
#pragma GCC unroll 2
      for (int t = 0; t < kSideBySide; ++t) {
        load_unit<bits>(words[t], unit[t]);
        prefetch_panel(words[t]);
        words[t] += U::kWords * kLanes;
      }
#pragma GCC unroll 2
      for (int j = 0; j < kSteps; ++j, x += rows) {
        UnsignedBytes codes[kSideBySide];
#pragma GCC unroll 2
        for (int t = 0; t < kSideBySide; ++t) codes[t] = unsigned_bytes(bytes_of<bits>(unit[t], j));
#pragma GCC unroll 16
        for (int r = 0; r < rows; ++r) {
          const SignedBytes value = signed_bytes(x[r]);
#pragma GCC unroll 2
          for (int t = 0; t < kSideBySide; ++t) sum[r][t] = dot(sum[r][t], value, codes[t]);
        }
      }
    }
#pragma GCC unroll 2
    for (int t = 0; t < kSideBySide; ++t) {
      const Floats scale = scales_of(tiles[t], g);
      prefetch_scales(tiles[t], g);
      Floats zero_points;
      if (zeros == Zeros::of_groups) zero_points = splat(0.0f) - to_floats(load(group_zeros[t] + g * kLanes));
#pragma GCC unroll 16
      for (int r = 0; r < rows; ++r) {
        float* const to = c + r * kColumns + t * kLanes;
        Floats plain = to_floats(sum[r][t]);
        if (zeros == Zeros::of_groups) plain = multiply_add(zero_points, splat(a_sums[r]), plain);
        const Floats before = fresh ? splat(0.0f) : load(to);
        store(to, multiply_add(plain * splat(a_scales[r]), scale, before));
      }
    }
    fresh = false;
  }
}

/// One group after the other: int32 sums inside a group, scaled and added up in float32 in c.
template <int bits, int rows>
static void multiply_byte_rows(const TileView* tiles, const Span& span, const FewRowsInput& input, float* c) {
  auto* const multiply = tiles[0].zeros == nullptr ? multiply_side_by_side<bits, rows, Zeros::of_table>
                                                   : multiply_side_by_side<bits, rows, Zeros::of_groups>;
  for (int t = 0; t < kByteTiles; t += kSideBySide) multiply(tiles + t, span, input, c + t * kLanes);
}

template <int... i>
static constexpr ByteRows byte_rows_of(std::integer_sequence<int, i...>) {
  return {kByteRows, {multiply_byte_rows<4, i + 1>...}, {multiply_byte_rows<8, i + 1>...}};
}

}  // namespace quantaria::ops::QUANTARIA_ISA
