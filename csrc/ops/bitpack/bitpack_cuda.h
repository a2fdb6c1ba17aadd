#pragma once

#include "ops/bitpack/bitpack.h"

/// The functions of bitpack.h in device memory, byte for byte. `stream` is a simt::Stream. Codes that they
/// refuse are told by `verdict`, 8 bytes of device memory, 0 before the call: the complement of the row-major
/// index of the first one (cuda/refusal.h). Nobody waits for a kernel here.
namespace quantaria::ops {

void pack_bits_cuda(void* stream, const ConstMatrix& codes, int bits, int32_t offset, uint8_t* packed,
                    const std::optional<NibbleOrder>& order, std::byte* verdict);
void unpack_bits_cuda(void* stream, const uint8_t* packed, int64_t packed_stride, int bits, int32_t offset,
                      const Matrix& codes, const std::optional<NibbleOrder>& order);
void swap_nibbles_cuda(void* stream, const uint8_t* in, int64_t bytes, uint8_t* out);
void pack_planar_cuda(void* stream, const uint8_t* codes, int64_t rows, int64_t cols, int bits,
                      uint8_t* packed, std::byte* verdict);
void unpack_planar_cuda(void* stream, const uint8_t* packed, int64_t rows, int64_t cols, int bits,
                        uint8_t* codes);
void offset_codes_cuda(void* stream, const ConstMatrix& in, int64_t delta,
                       const std::optional<CodeRange>& clamp, const Matrix& out, std::byte* verdict);

/// All of them, as a device hands them out (cuda/kernels.h).
struct BitLaunchers {
  decltype(&pack_bits_cuda) pack;
  decltype(&unpack_bits_cuda) unpack;
  decltype(&swap_nibbles_cuda) swap_nibbles;
  decltype(&pack_planar_cuda) pack_planar;
  decltype(&unpack_planar_cuda) unpack_planar;
  decltype(&offset_codes_cuda) offset_codes;
};
inline constexpr BitLaunchers kBitLaunchers{pack_bits_cuda,   unpack_bits_cuda,   swap_nibbles_cuda,
                                            pack_planar_cuda, unpack_planar_cuda, offset_codes_cuda};

}  // namespace quantaria::ops
