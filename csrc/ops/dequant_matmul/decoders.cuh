#pragma once

#include <type_traits>

#include "ops/dequant_matmul/coded_matrix.h"
#include "simt/simt.h"

/// From packed codes to tensor-core operands. Lane t of a quad takes codes 8 t .. 8 t + 7 of a run of 32,
/// which are whole bytes whatever the width, and makes four registers of two 16-bit values. The loop gives
/// the left factor the same order of columns, so no code ever moves to another lane.
namespace quantaria::ops {

inline constexpr int kAndOr = 0xea;  // lop3: (a & b) | c

/// The bytes of lane t from a run of 32 codes, Bits words in shared memory.
template <int Bits>
struct RawCodes {
  uint32_t word[Bits <= 4 ? 1 : 2];
};

template <int Bits>
__device__ __forceinline__ RawCodes<Bits> raw_codes(const uint32_t* run, int t) {
  if constexpr (Bits == 8) {
    return {{run[2 * t], run[2 * t + 1]}};
  } else if constexpr (Bits == 4) {
    return {{run[t]}};
  } else if constexpr (Bits == 3) {
    // Bytes 3 t .. 3 t + 2 lie in two neighbouring words.
    const int first = 3 * t / 4;
    const uint32_t next = run[first < 2 ? first + 1 : first];
    return {{simt::prmt(run[first], next, 0x3210u + 0x1111u * static_cast<uint32_t>(3 * t % 4))}};
  } else {
    static_assert(Bits == 2);
    return {{run[t / 2] >> t % 2 * 16}};
  }
}

/// Integers: code - zero, exact in 16 bits. A code or-ed into the mantissa of 2^10 (float16) or 2^7
/// (bfloat16), whose last bit is worth 1, makes that float plus the code; one fused multiply-add takes the
/// power and the zero point off.
template <class T, int Bits>
struct IntegerDecoder {
  static constexpr int kBits = Bits;
  static constexpr bool kFarPairs = true;  // register j holds codes j and j + 4, else 2 j and 2 j + 1
  static constexpr bool kTable = false;
  struct Shared {};

  /// What is subtracted, for each place in the mantissa that codes are or-ed into.
  struct Zero {
    uint32_t at[2];
  };
  static __device__ __forceinline__ Zero zero(float z) {
    if constexpr (Bits == 8 && !kHalf) {
      return {{simt::bits<uint32_t>(kFloatOne + z), 0}};
    } else if constexpr (!kHalf) {
      const uint32_t at0 = both(-(128.0f + z));
      return {{at0, at0}};
    } else {
      return {{both(-(1024.0f + z)), both(-(1024.0f / (1 << Bits) + z))}};
    }
  }

  static __device__ __forceinline__ void decode(const RawCodes<Bits>& raw, const Zero& zero, const Shared&,
                                                uint32_t (&pair)[4]) {
    if constexpr (Bits == 8) {
#pragma unroll
      for (int j = 0; j < 4; ++j) pair[j] = bytes(raw, j, zero);
    } else {
      const uint32_t apart = far_halves(raw.word[0]);
      constexpr uint32_t kMask = ((1u << Bits) - 1) * 0x10001u;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        // float16 has room for a second code above the first one, which then counts 2^Bits fold.
        const int above = kHalf ? j % 2 : 0;
        const uint32_t shifted = apart >> (j - above) * Bits;
        const uint32_t sum = simt::lop3<kAndOr>(shifted, kMask << above * Bits, kOne);
        const float back = above ? 1.0f / (1 << Bits) : 1.0f;
        pair[j] = simt::fma2<T>(sum, both(back), zero.at[above]);
      }
    }
  }

 private:
  static constexpr bool kHalf = std::is_same_v<T, simt::Half>;
  static constexpr uint32_t kOne = kHalf ? 0x64006400u : 0x43004300u;
  static constexpr float kFloatOne = 8388608.0f;  // 2^23

  static __device__ __forceinline__ uint32_t both(float x) { return simt::pack<T>(x, x); }

  /// Codes 0 to 3 in the lower half, 4 to 7 in the upper one, each half from its bit 0.
  static __device__ __forceinline__ uint32_t far_halves(uint32_t word) {
    if constexpr (Bits == 4) return word;
    if constexpr (Bits == 3) return (word & 0xfffu) | (word & 0xfff000u) << 4;
    return simt::prmt(word, 0, 0x4140);
  }

  /// Codes j and j + 4 of 8 bits.
  static __device__ __forceinline__ uint32_t bytes(const RawCodes<8>& raw, int j, const Zero& zero) {
    const auto place = static_cast<uint32_t>(j);
    if constexpr (kHalf) {
      const uint32_t codes = simt::prmt(raw.word[0], raw.word[1], place | (place + 4) << 8);
      const uint32_t sum = simt::lop3<kAndOr>(codes, 0x00ff00ffu, kOne);
      return simt::fma2<T>(sum, both(1.0f), zero.at[0]);
    } else {
      // Eight bits do not fit behind bfloat16's 2^7: through float32, whose difference is exact.
      const float base = simt::bits<float>(zero.at[0]);
      const float low = simt::bits<float>(simt::prmt(raw.word[0], 0x4b000000u, 0x7440u | place)) - base;
      const float high = simt::bits<float>(simt::prmt(raw.word[1], 0x4b000000u, 0x7440u | place)) - base;
      return simt::pack<T>(low, high);
    }
  }
};

/// Values of a table, rounded to 16 bits once for each block: two codes at a time where they share a byte.
template <class T, int Bits>
struct TableDecoder {
  static constexpr int kBits = Bits;
  static constexpr bool kFarPairs = false;
  static constexpr bool kTable = true;
  struct Shared {
    uint32_t entry[256];  // 4 bits: the values of both codes of a byte; 8 bits: its value in both halves
  };
  struct Zero {};  // the table has it
  static __device__ __forceinline__ Zero zero(float) { return {}; }

  static __device__ __forceinline__ void prepare(Shared& shared, const CodeTable& table) {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += static_cast<int>(blockDim.x))
      shared.entry[i] = Bits == 4 ? simt::pack<T>(table.values[i % 16], table.values[i / 16])
                                  : simt::pack<T>(table.values[i], table.values[i]);
  }

  static __device__ __forceinline__ void decode(const RawCodes<Bits>& raw, const Zero&, const Shared& shared,
                                                uint32_t (&pair)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (Bits == 4) {
        pair[j] = shared.entry[raw.word[0] >> 8 * j & 0xff];
      } else {
        const uint32_t word = raw.word[j / 2] >> j % 2 * 16;
        pair[j] = simt::prmt(shared.entry[word & 0xff], shared.entry[word >> 8 & 0xff], 0x5410);
      }
    }
  }
};

}  // namespace quantaria::ops
