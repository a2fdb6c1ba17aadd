#pragma once

#include "cpu/lanes.h"
#include "ops/dequant_matmul/kernels.h"

/// Codes of 2 to 8 bits out of interleaved bit rows, for kernels' files: lane r of word w holds word w of row
/// r, so sixteen rows are decoded by the same shifts.
namespace quantaria::ops::QUANTARIA_ISA {

/// The shortest run of words that ends with a code.
template <int bits>
struct Unit {
  static constexpr int kWords = bits / (bits & -bits);
  static constexpr int kCodes = kWords * 32 / bits;
};

/// Code j of a unit in the low bits of each lane; what lies above them is unspecified.
template <int bits>
QUANTARIA_LANES Ints code(const Ints (&words)[Unit<bits>::kWords], int j) {
  const int word = j * bits / 32;
  const int shift = j * bits % 32;
  const Ints low = shift_right(words[word], shift);
  if (shift + bits <= 32) return low;
  return low | shift_left(words[word + 1], 32 - shift);
}

template <int bits>
QUANTARIA_LANES void load_unit(const uint32_t* from, Ints (&words)[Unit<bits>::kWords]) {
  for (int w = 0; w < Unit<bits>::kWords; ++w) words[w] = load(from + w * kLanes);
}

/// Products of few rows wait for memory as they go: they ask for words and constants some KiB
/// ahead (past a tile's end: for the next tile's), into the second-level cache, which can wait for more lines
/// at a time than the first.
constexpr int kSecondLevel = 2;
QUANTARIA_LANES void prefetch_unit(const uint32_t* words) {
  __builtin_prefetch(words + kWordsAhead, 0, kSecondLevel);
}
QUANTARIA_LANES void prefetch_scales(const TileView& tile, int64_t group) {
  const auto* const scales =
      static_cast<const char*>(tile.scales) + group * kLanes * size_of(tile.scale_type);
  __builtin_prefetch(scales + kScaleBytesAhead, 0, kSecondLevel);
}

/// A group's scales. Which of the three it is, is the same for all of a weight, so that the branch costs
/// nothing.
QUANTARIA_LANES Floats scales_of(const TileView& tile, int64_t group) {
  if (tile.scale_type == ScaleType::float32)
    return load(static_cast<const float*>(tile.scales) + group * kLanes);
  const auto* const narrow = static_cast<const uint16_t*>(tile.scales) + group * kLanes;
  return tile.scale_type == ScaleType::float16 ? load_half(narrow) : load_bfloat16(narrow);
}

/// A panel is decoded in one go and then multiplied for long, so the words of the next should arrive in the
/// meantime.
QUANTARIA_LANES void prefetch_panel(const uint32_t* words) {
  __builtin_prefetch(words + 128 * kLanes, 0, kSecondLevel);
}

// ---- What codes stand for, before zero point and scale. `table` has 2^bits entries.

/// Up to sixteen values, kept in registers.
template <int bits>
struct ByPermutation {
  static_assert(bits <= 4);
  static constexpr int kBits = bits;
  Floats table;
  explicit ByPermutation(const float* from) {
    float all[kLanes];  // the bits above a code pick one of its copies
    for (int i = 0; i < kLanes; ++i) all[i] = from[i % (1 << bits)];
    table = load(all);
  }
  Floats operator()(const Ints& code) const { return look_up(table, code); }
};

/// Integers: the table's steps are 1.
template <int bits>
struct ByConversion {
  static constexpr int kBits = bits;
  Floats first;
  explicit ByConversion(const float* from) : first(splat(from[0])) {}
  Floats operator()(const Ints& code) const {
    return to_floats(code & splat(int32_t{(1 << bits) - 1})) + first;
  }
};

#if defined(__AVX512F__)

/// Integers of four bits, for products of few rows: or-ed into the mantissa of 2^(23 - 4p), whose last bit is
/// worth 2^-4p, a code at bits 4p .. 4p + 3 makes the float 2^(23 - 4p) + code. One operation of any port and
/// one subtraction, which takes the zero point off too, where shift and look-up would share two ports.
struct ByMantissa {
  static constexpr int kBits = 4;
  static constexpr int kPlaces = 4;  // codes of half a word; the other half is shifted down

  explicit ByMantissa(const float* table) : first_(splat(-table[0])) {}

  /// What is subtracted at each place for these zero points (0 where the table has them).
  struct Offsets {
    Floats at[kPlaces];
  };
  Offsets offsets(const Floats& zero) const {
    Offsets offsets;
    for (int p = 0; p < kPlaces; ++p) offsets.at[p] = as_floats(splat(one_at(p))) + (zero + first_);
    return offsets;
  }

  [[gnu::always_inline]] Floats operator()(const Ints (&unit)[1], int j, const Offsets& offsets) const {
    const int p = j % kPlaces;
    const Ints half = j < kPlaces ? unit[0] : shift_right(unit[0], 16);
    constexpr int kAndOr = 0xea;  // (a & b) | c
    const __m512i joined =
        _mm512_ternarylogic_epi32(reinterpret_cast<__m512i>(half.part[0]), _mm512_set1_epi32(0xf << 4 * p),
                                  _mm512_set1_epi32(one_at(p)), kAndOr);
    return Floats{{reinterpret_cast<FloatRegister>(joined)}} - offsets.at[p];
  }

 private:
  static constexpr int32_t one_at(int p) { return (127 + 23 - 4 * p) << 23; }
  Floats first_;
};

#endif

/// Codes that stand for values of a table, for products of few rows.
template <class Values>
struct ByValue {
  static constexpr int kBits = Values::kBits;
  Values values;
  explicit ByValue(const float* table) : values(table) {}
  using Offsets = Floats;
  Offsets offsets(const Floats& zero) const { return zero; }
  [[gnu::always_inline]] Floats operator()(const Ints (&unit)[Unit<kBits>::kWords], int j,
                                           const Offsets& zero) const {
    return values(code<kBits>(unit, j)) - zero;
  }
};

/// The same where the table has the zero points.
template <class Values>
struct ByValueAlone {
  static constexpr int kBits = Values::kBits;
  Values values;
  explicit ByValueAlone(const float* table) : values(table) {}
  struct Offsets {};
  Offsets offsets(const Floats&) const { return {}; }
  [[gnu::always_inline]] Floats operator()(const Ints (&unit)[Unit<kBits>::kWords], int j,
                                           const Offsets&) const {
    return values(code<kBits>(unit, j));
  }
};

/// Any table, from memory.
template <int bits>
struct ByGather {
  static constexpr int kBits = bits;
  const float* table;
  explicit ByGather(const float* from) : table(from) {}
  Floats operator()(const Ints& code) const {
    const Ints index = code & splat(int32_t{(1 << bits) - 1});
#if defined(__AVX512F__)
    return {{reinterpret_cast<FloatRegister>(
        _mm512_i32gather_ps(reinterpret_cast<__m512i>(index.part[0]), table, 4))}};
#else
    int32_t at[kLanes];
    store(at, index);
    float found[kLanes];
    for (int i = 0; i < kLanes; ++i) found[i] = table[at[i]];
    return load(found);
#endif
  }
};

/// Fills a table [decoding][bits] with Kernel<Values>::run.
template <template <class> class Kernel, class Function>
constexpr void for_common_decodings(Function* (&table)[kDecodings][kMostBits + 1]) {
  auto& permuted = table[static_cast<int>(Decoding::permutation)];
  permuted[2] = Kernel<ByPermutation<2>>::run;
  permuted[3] = Kernel<ByPermutation<3>>::run;
  permuted[4] = Kernel<ByPermutation<4>>::run;
  table[static_cast<int>(Decoding::conversion)][8] = Kernel<ByConversion<8>>::run;
  table[static_cast<int>(Decoding::gather)][8] = Kernel<ByGather<8>>::run;
}
template <template <class> class Kernel, class Function>
constexpr void for_all_decodings(Function* (&table)[kDecodings][kMostBits + 1]) {
  for_common_decodings<Kernel>(table);
  auto& converted = table[static_cast<int>(Decoding::conversion)];
  converted[5] = Kernel<ByConversion<5>>::run;
  converted[6] = Kernel<ByConversion<6>>::run;
  converted[7] = Kernel<ByConversion<7>>::run;
  table[static_cast<int>(Decoding::gather)][6] = Kernel<ByGather<6>>::run;
}

}  // namespace quantaria::ops::QUANTARIA_ISA
