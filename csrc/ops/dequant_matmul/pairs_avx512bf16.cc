#include "numerics/bits.h"
#include "ops/dequant_matmul/codes.h"
#include "ops/dequant_matmul/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

constexpr int kTiles = 2;

__m512 as_register(const Floats& x) { return reinterpret_cast<__m512>(x.part[0]); }
__m512i as_register(const Ints& x) { return reinterpret_cast<__m512i>(x.part[0]); }

/// Both rounded to bfloat16, the first in the low half of each lane.
__m512i pair(const Floats& low, const Floats& high) {
  alignas(64) static constexpr uint16_t kInterleaved[32] = {0,  16, 1,  17, 2,  18, 3,  19, 4,  20, 5,
                                                            21, 6,  22, 7,  23, 8,  24, 9,  25, 10, 26,
                                                            11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const auto both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(as_register(high), as_register(low)));
  return _mm512_permutexvar_epi16(_mm512_load_si512(kInterleaved), both);
}

/// Columns in their own order.
template <class Decoder>
void decode_by(const TileView& tile, const Span& span, void* to, int64_t stride) {
  using U = Unit<Decoder::kBits>;
  const Decoder decoder(span.table);
  const uint32_t* words = tile.words;
  uint32_t* step = static_cast<uint32_t*>(to);
  for (int64_t g = 0; g < span.groups; ++g) {
    const Floats scale = scales_of(tile, g);
    const auto offsets =
        decoder.offsets(tile.zeros == nullptr ? splat(0.0f) : to_floats(load(tile.zeros + g * kLanes)));
    for (int64_t u = 0; u < span.units_per_group; ++u, words += U::kWords * kLanes) {
      Ints unit[U::kWords];
      load_unit<Decoder::kBits>(words, unit);
      prefetch_panel(words);
#pragma GCC unroll 16
      for (int j = 0; j < U::kCodes; j += 2, step += stride) {
        const Floats low = decoder(unit, j, offsets) * scale;
        const Floats high = decoder(unit, j + 1, offsets) * scale;
        _mm512_storeu_si512(step, pair(low, high));
      }
    }
  }
}

template <class Values>
void decode(const TileView& tile, const Span& span, void* to, int64_t stride) {
  if (tile.zeros == nullptr)
    decode_by<ByValueAlone<Values>>(tile, span, to, stride);
  else
    decode_by<ByValue<Values>>(tile, span, to, stride);
}

// ---- Few rows: pairs of codes to the operand of one dot product, in the order that takes the least work.

/// Tables of up to sixteen entries: the halves of a word hold its first and last codes, so that shifting both
/// halves at once brings codes j and j + half to the low bits; one look-up serves both.
template <int bits>
struct PermutedPairs {
  static constexpr int kBits = bits;
  __m512i table;
  explicit PermutedPairs(const float* from) {
    alignas(64) uint16_t all[32];  // the bits above a code pick one of its copies
    for (int i = 0; i < 32; ++i) {
      const float x = from[i % (1 << bits)];
      const __m128bh rounded = _mm_cvtneps_pbh(_mm_set_ss(x));
      all[i] = static_cast<uint16_t>(_mm_extract_epi16(reinterpret_cast<__m128i>(rounded), 0));
    }
    table = _mm512_load_si512(all);
  }
  __m512bh operator()(const Ints (&unit)[1], int j) const {
    return reinterpret_cast<__m512bh>(_mm512_permutexvar_epi16(
        _mm512_srli_epi16(as_register(unit[0]), static_cast<unsigned>(j * bits)), table));
  }
};

/// The rest: neighbours, decoded to float32 and rounded.
template <class Values>
struct RoundedPairs {
  static constexpr int kBits = Values::kBits;
  Values values;
  explicit RoundedPairs(const float* from) : values(from) {}
  __m512bh operator()(const Ints (&unit)[Unit<kBits>::kWords], int j) const {
    return reinterpret_cast<__m512bh>(
        pair(values(code<kBits>(unit, 2 * j)), values(code<kBits>(unit, 2 * j + 1))));
  }
};

template <class Values>
struct PairsOf {
  using type = RoundedPairs<Values>;
};
template <>
struct PairsOf<ByPermutation<2>> {
  using type = PermutedPairs<2>;
};
template <>
struct PairsOf<ByPermutation<4>> {
  using type = PermutedPairs<4>;
};

template <class Pairs, int rows>
[[gnu::noinline]] void multiply_finite(const TileView* tiles, const Span& span, const FewRowsInput& input,
                                       float* c) {
  using U = Unit<Pairs::kBits>;
  constexpr int kPairs = U::kCodes / 2;
  constexpr int kTurns = rows == 1 ? 4 : 2;
  const Pairs pairs(span.table);
  const int32_t* x = static_cast<const int32_t*>(input.x);
  const uint32_t* words[kTiles];
  __m512 total[rows][kTiles];
#pragma GCC unroll 4
  for (int t = 0; t < kTiles; ++t) {
    words[t] = tiles[t].words;
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
      total[r][t] = input.accumulate ? _mm512_loadu_ps(c + (r * kTiles + t) * kLanes) : _mm512_setzero_ps();
  }
  for (int64_t g = 0; g < span.groups; ++g) {
    __m512 sum[rows][kTiles][kTurns];
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t)
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int turn = 0; turn < kTurns; ++turn) sum[r][t][turn] = _mm512_setzero_ps();
    for (int64_t u = 0; u < span.units_per_group; ++u, x += kPairs * rows) {
#pragma GCC unroll 4
      for (int t = 0; t < kTiles; ++t) {
        Ints unit[U::kWords];
        load_unit<Pairs::kBits>(words[t], unit);
        prefetch_unit(words[t]);
        words[t] += U::kWords * kLanes;
#pragma GCC unroll 16
        for (int j = 0; j < kPairs; ++j) {
          const __m512bh value = pairs(unit, j);
#pragma GCC unroll 4
          for (int r = 0; r < rows; ++r)
            sum[r][t][j % kTurns] = _mm512_dpbf16_ps(
                sum[r][t][j % kTurns], reinterpret_cast<__m512bh>(_mm512_set1_epi32(x[j * rows + r])), value);
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
      const __m512 scale = as_register(scales_of(tiles[t], g));
      prefetch_scales(tiles[t], g);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        __m512 group = sum[r][t][0];
#pragma GCC unroll 4
        for (int turn = 1; turn < kTurns; ++turn) group = _mm512_add_ps(group, sum[r][t][turn]);
        // (code - zero) x, summed: the zero point times the sum of x leaves the codes' products as they are.
        if (tiles[t].zeros != nullptr)
          group = _mm512_fnmadd_ps(as_register(to_floats(load(tiles[t].zeros + g * kLanes))),
                                   _mm512_set1_ps(input.sums[g * rows + r]), group);
        total[r][t] = _mm512_fmadd_ps(group, scale, total[r][t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) _mm512_storeu_ps(c + (r * kTiles + t) * kLanes, total[r][t]);
}

/// (code - zero) x, summed over a group term by term. x: `rows` words apart.
template <class Pairs>
__m512 sum_by_terms(const Pairs& pairs, const TileView& group, int64_t units, const int32_t* x, int rows) {
  using U = Unit<Pairs::kBits>;
  const Floats zero = to_floats(load(group.zeros));
  const Ints upper = splat(static_cast<int32_t>(0xffff0000u));
  Floats sum = splat(0.0f);
  const auto add = [&](const Ints& values, int32_t activation) {
    sum = multiply_add(as_floats(splat(activation) & upper), as_floats(values & upper) - zero, sum);
  };
  for (int64_t u = 0; u < units; ++u) {
    Ints unit[U::kWords];
    load_unit<Pairs::kBits>(group.words + u * U::kWords * kLanes, unit);
    for (int j = 0; j < U::kCodes / 2; ++j, x += rows) {
      const Ints values{{reinterpret_cast<IntRegister>(pairs(unit, j))}};
      add(shift_left(values, 16), static_cast<int32_t>(static_cast<uint32_t>(*x) << 16));
      add(values, *x);
    }
  }
  return as_register(sum);
}

bool all_finite(const float* x, int64_t n) {
  uint32_t most = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t magnitude = numerics::bits_of(x[i]) & ~numerics::kSignBit;
    most = magnitude > most ? magnitude : most;
  }
  return most < numerics::kInfinityBits;
}

/// Taken off an infinite sum, a zero point would leave NaN, though each infinity has the sign of its own code
/// less the zero point. Groups whose activations' sum is not finite are therefore summed term by term; all
/// else has the bits that it has without them.
template <class Pairs, int rows>
[[gnu::noinline, gnu::cold]] void multiply_infinite(const TileView* tiles, const Span& span,
                                                    const FewRowsInput& input, float* c) {
  constexpr int64_t kWidth = kTiles * kLanes;
  const int64_t words = span.units_per_group * Unit<Pairs::kBits>::kWords * kLanes;
  const int64_t x_words = span.units_per_group * Unit<Pairs::kBits>::kCodes / 2 * rows;
  const Pairs pairs(span.table);
  FewRowsInput rest = input;
  for (int64_t g = 0; g < span.groups; ++g) {
    TileView group[kTiles];
    for (int t = 0; t < kTiles; ++t) group[t] = tiles[t].from(g * words, g);
    float before[rows * kWidth] = {};
    if (rest.accumulate) std::memcpy(before, c, sizeof before);
    multiply_finite<Pairs, rows>(group, {span.table, 1, span.units_per_group}, rest, c);
    for (int r = 0; r < rows; ++r)
      for (int t = 0; t < kTiles && !numerics::is_finite(rest.sums[r]); ++t) {
        const __m512 sum = sum_by_terms(pairs, group[t], span.units_per_group,
                                        static_cast<const int32_t*>(rest.x) + r, rows);
        const int64_t at = r * kWidth + t * kLanes;
        _mm512_storeu_ps(
            c + at, _mm512_fmadd_ps(sum, as_register(scales_of(group[t], 0)), _mm512_loadu_ps(before + at)));
      }
    rest.x = static_cast<const int32_t*>(rest.x) + x_words;
    rest.sums += rows;
    rest.accumulate = true;
  }
}

template <class Pairs, int rows>
void multiply(const TileView* tiles, const Span& span, const FewRowsInput& input, float* c) {
  const bool finite = tiles[0].zeros == nullptr || all_finite(input.sums, span.groups * rows);
  return (finite ? multiply_finite<Pairs, rows> : multiply_infinite<Pairs, rows>)(tiles, span, input, c);
}

template <class Values>
struct Decode {
  static constexpr DecodePanel* run = decode<Values>;
};
template <int rows>
struct Multiply {
  template <class Values>
  struct Few {
    static constexpr FewRows* run = multiply<typename PairsOf<Values>::type, rows>;
  };
};

constexpr PairKernels kernels() {
  PairKernels k{};
  for_all_decodings<Decode>(k.decode);
  k.decode_int4 = decode_by<ByMantissa>;
  for_common_decodings<Multiply<1>::Few>(k.few_rows[0]);
  for_common_decodings<Multiply<2>::Few>(k.few_rows[1]);
  for_common_decodings<Multiply<3>::Few>(k.few_rows[2]);
  for_common_decodings<Multiply<4>::Few>(k.few_rows[3]);
  return k;
}

}  // namespace

extern const PairKernels pair_kernels;
const PairKernels pair_kernels = kernels();

}  // namespace quantaria::ops::QUANTARIA_ISA
