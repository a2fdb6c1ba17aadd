#include "numerics/bfloat16.h"
#include "ops/dequant_matmul/codes.h"
#include "ops/dequant_matmul/kernels.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int kTiles = 2;
#else
constexpr int kTiles = 1;
#endif

/// To nearest even, as float32. NaN, of a code or a scale, stays NaN: it is not rounded, which could carry
/// into its sign, and keeps a bit if those that it has are cut off.
Floats to_bfloat16(const Floats& x) {
  const Floats infinity = splat(__builtin_inff());
  const Ints number = (infinity > x) | (x > splat(-__builtin_inff()));
  const Ints pattern = bits(x);
  const Ints odd = shift_right(pattern, 16) & splat(int32_t{1});
  const Ints rounding = (splat(int32_t{0x7fff}) + odd) & number;
  const Ints quiet = (splat(int32_t{-1}) - number) & splat(int32_t{0x00400000});
  return as_floats(((pattern + rounding) | quiet) & splat(static_cast<int32_t>(0xffff0000u)));
}

template <class Values, bool rounded>
void decode(const TileView& tile, const Span& span, void* to, int64_t stride) {
  using U = Unit<Values::kBits>;
  const Values values(span.table);
  const uint32_t* words = tile.words;
  float* row = static_cast<float*>(to);
  for (int64_t g = 0; g < span.groups; ++g) {
    const Floats scale = scales_of(tile, g);
    const Floats zero = tile.zeros == nullptr ? splat(0.0f) : to_floats(load(tile.zeros + g * kLanes));
    for (int64_t u = 0; u < span.units_per_group; ++u, words += U::kWords * kLanes) {
      Ints unit[U::kWords];
      load_unit<Values::kBits>(words, unit);
      prefetch_panel(words);
#pragma GCC unroll 32
      for (int j = 0; j < U::kCodes; ++j, row += stride) {
        const Floats value = (values(code<Values::kBits>(unit, j)) - zero) * scale;
        store(row, rounded ? to_bfloat16(value) : value);
      }
    }
  }
}

/// Few rows: each code is decoded into a register and used there. Sums of a group are kept apart from the
/// total, so that a scale is applied once a group; several sums take turns, as a chain of one would wait on
/// itself.
template <class Decoder, int rows>
void multiply(const TileView* tiles, const Span& span, const FewRowsInput& input, float* c) {
  using U = Unit<Decoder::kBits>;
  constexpr int kTurns = rows == 1 ? 4 : 2;
  const Decoder decoder(span.table);
  const float* x = static_cast<const float*>(input.x);
  const uint32_t* words[kTiles];
  Floats total[rows][kTiles];
#pragma GCC unroll 4
  for (int t = 0; t < kTiles; ++t) {
    words[t] = tiles[t].words;
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r)
      total[r][t] = input.accumulate ? load(c + (r * kTiles + t) * kLanes) : splat(0.0f);
  }
  for (int64_t g = 0; g < span.groups; ++g) {
    Floats sum[rows][kTiles][kTurns];
    typename Decoder::Offsets offsets[kTiles];
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
      offsets[t] = decoder.offsets(tiles[t].zeros == nullptr ? splat(0.0f)
                                                             : to_floats(load(tiles[t].zeros + g * kLanes)));
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
        for (int turn = 0; turn < kTurns; ++turn) sum[r][t][turn] = splat(0.0f);
    }
    for (int64_t u = 0; u < span.units_per_group; ++u, x += U::kCodes * rows) {
#pragma GCC unroll 4
      for (int t = 0; t < kTiles; ++t) {
        Ints unit[U::kWords];
        load_unit<Decoder::kBits>(words[t], unit);
        prefetch_unit(words[t]);
        words[t] += U::kWords * kLanes;
#pragma GCC unroll 32
        for (int j = 0; j < U::kCodes; ++j) {
          const Floats value = decoder(unit, j, offsets[t]);
#pragma GCC unroll 4
          for (int r = 0; r < rows; ++r)
            sum[r][t][j % kTurns] = multiply_add(splat(x[j * rows + r]), value, sum[r][t][j % kTurns]);
        }
      }
    }
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) {
      const Floats scale = scales_of(tiles[t], g);
      prefetch_scales(tiles[t], g);
#pragma GCC unroll 4
      for (int r = 0; r < rows; ++r) {
        Floats group = sum[r][t][0];
#pragma GCC unroll 4
        for (int turn = 1; turn < kTurns; ++turn) group = group + sum[r][t][turn];
        total[r][t] = multiply_add(group, scale, total[r][t]);
      }
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r)
#pragma GCC unroll 4
    for (int t = 0; t < kTiles; ++t) store(c + (r * kTiles + t) * kLanes, total[r][t]);
}

template <class Values>
struct Decode {
  static constexpr DecodePanel* run = decode<Values, false>;
};
template <class Values>
struct DecodeRounded {
  static constexpr DecodePanel* run = decode<Values, true>;
};
template <int rows>
struct Multiply {
  template <class Values>
  struct Few {
    static constexpr FewRows* run = multiply<ByValue<Values>, rows>;
  };
};

#if defined(__AVX512F__)
template <int rows>
constexpr void put_integers(DequantKernels& k) {
  k.few_rows_of_int4[rows - 1] = multiply<ByMantissa, rows>;
}
#else
template <int rows>
constexpr void put_integers(DequantKernels& k) {
  k.few_rows_of_int4[rows - 1] = multiply<ByValue<ByPermutation<4>>, rows>;
}
#endif

constexpr DequantKernels kernels() {
  DequantKernels k{};
  k.tiles = kTiles;
  for_all_decodings<Decode>(k.decode_float32);
  for_all_decodings<DecodeRounded>(k.decode_rounded);
  for_common_decodings<Multiply<1>::Few>(k.few_rows[0]);
  for_common_decodings<Multiply<2>::Few>(k.few_rows[1]);
  for_common_decodings<Multiply<3>::Few>(k.few_rows[2]);
  for_common_decodings<Multiply<4>::Few>(k.few_rows[3]);
  put_integers<1>(k);
  put_integers<2>(k);
  put_integers<3>(k);
  put_integers<4>(k);
  return k;
}

}  // namespace

extern const DequantKernels dequant_kernels;
const DequantKernels dequant_kernels = kernels();

}  // namespace quantaria::ops::QUANTARIA_ISA
