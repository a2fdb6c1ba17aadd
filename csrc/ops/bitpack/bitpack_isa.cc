#include <cstring>

#include "ops/bitpack/kernels.h"

#if defined(__BMI2__)
#include <immintrin.h>
#endif

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

// 32 codes of b bits are b words exactly, so rows are taken in such groups and only the last one can be cut.
constexpr int64_t kGroup = 32;

constexpr int64_t group_bytes(int bits) { return 4 * bits; }

constexpr uint64_t low_bits_of_bytes(int bits) { return 0x0101010101010101u * ((1u << bits) - 1u); }

/// The low bits of eight bytes, joined.
template <int kBits>
[[gnu::always_inline]] inline uint64_t gather_bits(uint64_t codes) {
#if defined(__BMI2__)
  return _pext_u64(codes, low_bits_of_bytes(kBits));
#else
  uint64_t joined = 0;
  for (int i = 0; i < 8; ++i) joined |= (codes >> (8 * i) & 0xffu) << (kBits * i);
  return joined;
#endif
}

template <int kBits>
[[gnu::always_inline]] inline uint64_t scatter_bits(uint64_t joined) {
#if defined(__BMI2__)
  return _pdep_u64(joined, low_bits_of_bytes(kBits));
#else
  uint64_t codes = 0;
  for (int i = 0; i < 8; ++i) codes |= (joined >> (kBits * i) & ((1u << kBits) - 1u)) << (8 * i);
  return codes;
#endif
}

template <int kBits>
[[gnu::always_inline]] inline void pack_group(const uint8_t* codes, uint8_t* packed) {
  for (int i = 0; i < 4; ++i) {
    uint64_t eight;
    std::memcpy(&eight, codes + 8 * i, 8);
    const uint64_t joined = gather_bits<kBits>(eight);
    std::memcpy(packed + kBits * i, &joined, kBits);
  }
}

template <int kBits>
[[gnu::always_inline]] inline void unpack_group(const uint8_t* packed, uint8_t* codes) {
  for (int i = 0; i < 4; ++i) {
    uint64_t joined = 0;
    std::memcpy(&joined, packed + kBits * i, kBits);
    const uint64_t eight = scatter_bits<kBits>(joined);
    std::memcpy(codes + 8 * i, &eight, 8);
  }
}

/// Whole groups of the widths that divide a byte, as loops that the compiler vectorises.
template <int kBits>
[[gnu::always_inline]] inline void pack_groups(const uint8_t* codes, int64_t groups, uint8_t* packed) {
  if constexpr (kBits == 8) {
    std::memcpy(packed, codes, static_cast<size_t>(groups * kGroup));
  } else if constexpr (kBits == 4) {
    for (int64_t i = 0; i < groups * kGroup / 2; ++i) {
      uint16_t pair;
      std::memcpy(&pair, codes + 2 * i, 2);
      packed[i] = static_cast<uint8_t>(pair | pair >> 4);
    }
  } else if constexpr (kBits == 2) {
    for (int64_t i = 0; i < groups * kGroup / 4; ++i) {
      uint32_t four;
      std::memcpy(&four, codes + 4 * i, 4);
      packed[i] = static_cast<uint8_t>(four | four >> 6 | four >> 12 | four >> 18);
    }
  } else {
    for (int64_t g = 0; g < groups; ++g)
      pack_group<kBits>(codes + g * kGroup, packed + g * group_bytes(kBits));
  }
}

template <int kBits>
[[gnu::always_inline]] inline void unpack_groups(const uint8_t* packed, int64_t groups, uint8_t* codes) {
  if constexpr (kBits == 8) {
    std::memcpy(codes, packed, static_cast<size_t>(groups * kGroup));
  } else if constexpr (kBits == 4) {
    for (int64_t i = 0; i < groups * kGroup / 2; ++i) {
      const uint16_t pair = static_cast<uint16_t>((packed[i] & 0xfu) | (packed[i] & 0xf0u) << 4);
      std::memcpy(codes + 2 * i, &pair, 2);
    }
  } else {
    for (int64_t g = 0; g < groups; ++g)
      unpack_group<kBits>(packed + g * group_bytes(kBits), codes + g * kGroup);
  }
}

constexpr size_t cut_bytes(int64_t codes, int bits) {
  return static_cast<size_t>((codes * bits + 31) / 32 * 4);
}

template <int kBits>
void pack(const uint8_t* codes, int64_t n, uint8_t* packed) {
  const int64_t groups = n / kGroup;
  if (groups > 0) pack_groups<kBits>(codes, groups, packed);
  if (const int64_t rest = n - groups * kGroup; rest > 0) {
    uint8_t whole[group_bytes(kBits)];
    pack_groups<kBits>(codes + groups * kGroup, 1, whole);
    std::memcpy(packed + groups * group_bytes(kBits), whole, cut_bytes(rest, kBits));
  }
}

template <int kBits>
void unpack(const uint8_t* packed, int64_t n, uint8_t* codes) {
  const int64_t groups = n / kGroup;
  if (groups > 0) unpack_groups<kBits>(packed, groups, codes);
  if (const int64_t rest = n - groups * kGroup; rest > 0) {
    uint8_t whole[group_bytes(kBits)] = {};
    std::memcpy(whole, packed + groups * group_bytes(kBits), cut_bytes(rest, kBits));
    unpack_groups<kBits>(whole, 1, codes + groups * kGroup);
  }
}

}  // namespace

extern const BitKernels bit_kernels;
const BitKernels bit_kernels = {
    {nullptr, nullptr, pack<2>, pack<3>, pack<4>, pack<5>, pack<6>, pack<7>, pack<8>},
    {nullptr, nullptr, unpack<2>, unpack<3>, unpack<4>, unpack<5>, unpack<6>, unpack<7>, unpack<8>},
};

}  // namespace quantaria::ops::QUANTARIA_ISA
