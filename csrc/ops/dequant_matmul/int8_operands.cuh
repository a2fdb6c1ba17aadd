#pragma once

#include "ops/dequant_matmul/int8_fetch.cuh"

/// From what lies in shared memory to operands of int8 tensor cores, a run of 32 columns at a time. Of codes
/// of four bits lane t of a quad has 8 t .. 8 t + 7 in one word, the even ones in the lower halves of its
/// bytes and the odd ones in the upper halves; the columns of activations take turns to meet them (Int8Rows).
namespace quantaria::ops {

/// By how many bits decoded codes are shifted up: four bits stay in the upper halves of bytes.
template <int Bits>
inline constexpr int kCodeShift = Bits == 4 ? 4 : 0;

/// Codes 8 t .. 8 t + 7 of any width less 2^(bits - 1) from a run of `bits` words, the even ones first.
__device__ __forceinline__ void signed_bytes(const uint32_t* run, int t, int bits, uint32_t (&word)[2]) {
  const int first = bits * t / 4;  // eight codes are `bits` bytes, in three words at most
  const int shift = bits * t % 4 * 8;
  const int last = bits - 1;
  const uint64_t low = run[first];
  const uint64_t middle = run[first < last ? first + 1 : last];
  const uint64_t high = run[first + 1 < last ? first + 2 : last];
  uint64_t codes = (low | middle << 32) >> shift;
  if (shift > 0) codes |= high << (64 - shift);
  const auto mask = (uint64_t{1} << bits) - 1;
  word[0] = 0;
  word[1] = 0;
#pragma unroll
  for (int i = 0; i < 8; ++i) word[i % 2] |= static_cast<uint32_t>(codes >> i * bits & mask) << i / 2 * 8;
  const uint32_t lift = (0x80u - (1u << (bits - 1))) * 0x01010101u;  // no byte overflows
  word[0] = (word[0] + lift) ^ 0x80808080u;
  word[1] = (word[1] + lift) ^ 0x80808080u;
}

/// The codes of a run for each eight columns of a warp, less 2^(bits - 1), shifted up by kCodeShift<Bits>.
template <class Tile, int Bits>
__device__ __forceinline__ void load_codes(
    const uint32_t (&codes)[Tile::kTileCols][int8_code_bytes(Tile::kStep, Bits) / 4],
    const WarpPlace<Tile>& warp, int run, int bits, uint32_t (&operand)[Tile::kCols][2]) {
  constexpr uint32_t kSigns = 0x80808080u;
  if constexpr (Bits == 0) {
#pragma unroll
    for (int j = 0; j < Tile::kCols; ++j)
      signed_bytes(&codes[warp.col + j * 8 + warp.g][run * bits], warp.t, bits, operand[j]);
    // A run's codes of eight columns are Bits / 4 matrices; as many as one instruction loads at a time.
  } else {
    constexpr int kOfEight = Bits / 4;
    constexpr int kAtOnce = Tile::kCols * kOfEight < 4 ? Tile::kCols * kOfEight : 4;
    constexpr int kEights = kAtOnce / kOfEight;
    constexpr int kPieces = int8_code_bytes(Tile::kStep, Bits) / 16;
    const int lane = static_cast<int>(threadIdx.x) % 32;
    const int matrix = lane / 8 % kAtOnce;
    const int n = warp.col + matrix / kOfEight * 8 + lane % 8;
    const int piece = swapped_piece<kPieces>(n, run * kOfEight + matrix % kOfEight);
#pragma unroll
    for (int j = 0; j < Tile::kCols; j += kEights) {
      uint32_t word[kAtOnce];
      simt::ldmatrix(word, &codes[n + j * 8][piece * 4]);
#pragma unroll
      for (int i = 0; i < kEights; ++i) {
        uint32_t (&two)[2] = operand[j + i];
        if constexpr (Bits == 8) {
          two[0] = word[2 * i] ^ kSigns;
          two[1] = word[2 * i + 1] ^ kSigns;
        } else {
          constexpr int kAndXor = 0x6a;  // (a & b) ^ c
          two[0] = simt::lop3<kAndXor>(word[i] << 4, 0xf0f0f0f0u, kSigns);
          two[1] = simt::lop3<kAndXor>(word[i], 0xf0f0f0f0u, kSigns);
        }
      }
    }
  }
}

/// sum += the products of a run; with `start` it begins there.
template <int Bits, class Tile, class Stage>
__device__ __forceinline__ void multiply_run(const Stage& stage, const WarpPlace<Tile>& warp, int run,
                                             int bits, const int32_t (*start)[4],
                                             int32_t (&sum)[Tile::kRows][Tile::kCols][4]) {
  uint32_t codes[Tile::kCols][2];
  load_codes<Tile, Bits>(stage.codes, warp, run, bits, codes);
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const int row = warp.row + lane % 16;
  const int piece = swapped_piece<Tile::kStep / 16>(row, run * 2 + lane / 16);
#pragma unroll
  for (int i = 0; i < Tile::kRows; ++i) {
    uint32_t x[4];
    simt::ldmatrix(x, &stage.x[row + i * 16][piece * 16]);
#pragma unroll
    for (int j = 0; j < Tile::kCols; ++j)
      if (start)
        simt::mma_m16n8k32_s8(sum[i][j], x, codes[j], *start);
      else
        simt::mma_m16n8k32_s8(sum[i][j], x, codes[j]);
  }
}

}  // namespace quantaria::ops
