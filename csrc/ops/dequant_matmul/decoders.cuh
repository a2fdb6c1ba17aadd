#pragma once

#include <type_traits>

#include "ops/dequant_matmul/coded_matrix.h"
#include "simt/simt.h"

/// From packed codes to tensor-core operands. Lane t of a quad takes codes 8 t .. 8 t + 7 of a run of 32,
/// which are whole bytes whatever the width, and makes four registers of two neighbours each, as 16-bit
/// values. Of the left factor it takes the same columns, 16 bytes as they lie in memory: no code ever moves
/// to another lane, and no activation to another register.
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
  static constexpr bool kTable = false;
  struct Shared {};

  /// What is subtracted from pairs with an even and with an odd number, whose codes may stand at other bits.
  struct Zero {
    uint32_t of_pair[2];
  };
  static __device__ __forceinline__ Zero zero(float z) {
    if constexpr (Bits == 8 && !kHalf) {
      return {{simt::bits<uint32_t>(kFloatOne + z), 0}};
    } else {
      Zero zero;
#pragma unroll
      for (int j = 0; j < 2; ++j)
        zero.of_pair[j] = simt::pack<T>(-(kOne * back(j, 0) + z), -(kOne * back(j, 1) + z));
      return zero;
    }
  }

  static __device__ __forceinline__ void decode(const RawCodes<Bits>& raw, const Zero& zero, const Shared&,
                                                uint32_t (&pair)[4]) {
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      if constexpr (Bits == 8 && !kHalf) {
        pair[j] = from_floats(raw.word[j / 2], j % 2 * 2, simt::bits<float>(zero.of_pair[0]));
      } else {
        constexpr uint32_t kCode = (1u << Bits) - 1;
        const uint32_t mask = kCode << bit_of(j, 0) | kCode << 16 << bit_of(j, 1);
        const uint32_t sum = simt::lop3<kAndOr>(halves(raw, j), mask, kOneBits);
        pair[j] = simt::fma2<T>(sum, simt::pack<T>(back(j, 0), back(j, 1)), zero.of_pair[j % 2]);
      }
    }
  }

 private:
  static constexpr bool kHalf = std::is_same_v<T, simt::Half>;
  static constexpr float kOne = kHalf ? 1024.0f : 128.0f;
  static constexpr uint32_t kOneBits = kHalf ? 0x64006400u : 0x43004300u;
  static constexpr float kFloatOne = 8388608.0f;  // 2^23

  /// At which bit of its half the code 2 j + half is brought. A mantissa of ten bits, or of seven for narrow
  /// codes, has room for more than one place: bit p makes the code count 2^p fold, which costs nothing to
  /// undo, and saves a shift.
  static constexpr __device__ int bit_of(int j, int half) {
    if (Bits == 2) return j % 2 * 4;
    if (Bits == 3 && kHalf) return j % 2 * 6;
    return Bits == 4 && kHalf ? half * 4 : 0;
  }
  static constexpr __device__ float back(int j, int half) {
    return 1.0f / static_cast<float>(1 << bit_of(j, half));
  }

  /// The codes 2 j and 2 j + 1 at those bits, among others.
  static __device__ __forceinline__ uint32_t halves(const RawCodes<Bits>& raw, int j) {
    const auto place = static_cast<uint32_t>(j);
    const uint32_t word = raw.word[Bits == 8 ? j / 2 : 0];
    if constexpr (Bits == 8) return simt::prmt(word, 0, 0x100 + 0x202 * (place % 2));
    if constexpr (Bits == 4) return simt::prmt(word, kHalf ? word : word >> 4, 0x400 + 0x101 * place);
    if constexpr (Bits == 3) {
      const uint32_t four = word >> place / 2 * 12;
      return simt::prmt(four, four >> 3, 0x5410) >> (kHalf ? 0 : place % 2 * 6);
    }
    return simt::prmt(word, word >> 2, 0x5410) >> place / 2 * 8;
  }

  /// Two of a word's bytes, from that one on. Eight bits do not fit behind bfloat16's 2^7: through float32,
  /// whose difference is exact.
  static __device__ __forceinline__ uint32_t from_floats(uint32_t word, int first, float base) {
    const auto byte = 0x7440u + static_cast<uint32_t>(first);
    return simt::pack<T>(simt::bits<float>(simt::prmt(word, 0x4b000000u, byte)) - base,
                         simt::bits<float>(simt::prmt(word, 0x4b000000u, byte + 1)) - base);
  }
};

/// Values of a table, rounded to 16 bits once for each block: two codes at a time where they share a byte.
template <class T, int Bits>
struct TableDecoder {
  static constexpr int kBits = Bits;
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
