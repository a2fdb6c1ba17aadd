#include "cpu/lanes.h"
#include "numerics/e8m0.h"
#include "numerics/float8.h"
#include "ops/quantize/kernels.h"

// Plain loops over branch-free conversions: the compiler vectorises them.
namespace quantaria::ops::QUANTARIA_ISA {
namespace {

using numerics::Rounding;
using numerics::SmallFloat;

template <SmallFloat F>
void encode_fp8(const float* row, int64_t n, float scale, uint8_t* codes) {
  for (int64_t j = 0; j < n; ++j)
    codes[j] = static_cast<uint8_t>(numerics::encode_saturating<F>(row[j] / scale));
}

void decode_e4m3(const uint8_t* codes, int64_t n, float scale, float* row) {
  for (int64_t j = 0; j < n; ++j) row[j] = numerics::float_from_e4m3(codes[j]) * scale;
}

void decode_e5m2(const uint8_t* codes, int64_t n, float scale, float* row) {
  for (int64_t j = 0; j < n; ++j) row[j] = numerics::float_from_e5m2(codes[j]) * scale;
}

constexpr int64_t kBlock = 32;

/// Calls body(block, first, last) for each block of a row.
template <class Body>
QUANTARIA_LANES void for_each_block(int64_t n, Body&& body) {
  for (int64_t first = 0, b = 0; first < n; first += kBlock, ++b)
    body(b, first, n - first < kBlock ? n : first + kBlock);
}

template <SmallFloat F, Rounding R>
struct SmallFloatElement {
  [[gnu::always_inline]] static uint8_t encode(float x) {
    return static_cast<uint8_t>(numerics::encode_saturating<F, R>(x));
  }
};

/// Two's complement with 6 bits behind the point, -127/64 .. 127/64.
template <Rounding R>
struct Int8Element {
  [[gnu::always_inline]] static uint8_t encode(float x) {
    const float clamped = x < -127.0f / 64 ? -127.0f / 64 : x > 127.0f / 64 ? 127.0f / 64 : x;
    const float steps = clamped * 64.0f;
    if constexpr (R == Rounding::even) {
      return static_cast<uint8_t>(numerics::bits_of(steps + numerics::kRoundingMagic));
    } else {
      const int truncated = static_cast<int>(steps);
      const float rest = steps - static_cast<float>(truncated);
      const int away = R == Rounding::nearest ? (rest >= 0.5f) - (rest <= -0.5f) : 0;
      return static_cast<uint8_t>(truncated + away);
    }
  }
};

/// A block of zeros, signed ones too, has scale byte 0 and codes 0; its scale byte alone would not tell it
/// from a block of subnormals, but then those codes come out right by themselves.
template <class Element>
void encode_mx(const float* row, int64_t n, const uint8_t* scales, uint8_t* codes) {
  for_each_block(n, [&](int64_t b, int64_t first, int64_t last) {
    const float inverse = numerics::inverse_of_e8m0(scales[b]);
    for (int64_t j = first; j < last; ++j) codes[j] = Element::encode(row[j] * inverse);
  });
}

template <class Decode>
QUANTARIA_LANES void decode_mx(const uint8_t* codes, int64_t n, const uint8_t* scales, float* row,
                               Decode decode) {
  for_each_block(n, [&](int64_t b, int64_t first, int64_t last) {
    const float scale = numerics::float_from_e8m0(scales[b]);
    for (int64_t j = first; j < last; ++j) row[j] = decode(codes[j]) * scale;
  });
}

template <SmallFloat F>
void decode_mx_finite(const uint8_t* codes, int64_t n, const uint8_t* scales, float* row) {
  decode_mx(codes, n, scales, row, [](uint8_t code) { return numerics::decode_finite<F>(code); });
}
// Codes from a file may be NaN or infinite.
void decode_mx_e4m3(const uint8_t* codes, int64_t n, const uint8_t* scales, float* row) {
  decode_mx(codes, n, scales, row, [](uint8_t code) { return numerics::float_from_e4m3(code); });
}
void decode_mx_e5m2(const uint8_t* codes, int64_t n, const uint8_t* scales, float* row) {
  decode_mx(codes, n, scales, row, [](uint8_t code) { return numerics::float_from_e5m2(code); });
}
void decode_mx_int8(const uint8_t* codes, int64_t n, const uint8_t* scales, float* row) {
  decode_mx(codes, n, scales, row,
            [](uint8_t code) { return static_cast<float>(static_cast<int8_t>(code)) * (1.0f / 64); });
}

template <SmallFloat F>
constexpr MxEncoders kEncoders{{encode_mx<SmallFloatElement<F, Rounding::even>>,
                                encode_mx<SmallFloatElement<F, Rounding::nearest>>,
                                encode_mx<SmallFloatElement<F, Rounding::floor>>}};
constexpr MxEncoders kInt8Encoders{{encode_mx<Int8Element<Rounding::even>>,
                                    encode_mx<Int8Element<Rounding::nearest>>,
                                    encode_mx<Int8Element<Rounding::floor>>}};

}  // namespace

extern const SmallFloatKernels small_float_kernels;
const SmallFloatKernels small_float_kernels = {
    {encode_fp8<numerics::kE4M3>, encode_fp8<numerics::kE5M2>},
    {decode_e4m3, decode_e5m2},
    {kEncoders<numerics::kE4M3>, kEncoders<numerics::kE5M2>, kEncoders<numerics::kE3M2>,
     kEncoders<numerics::kE2M3>, kEncoders<numerics::kE2M1>, kInt8Encoders},
    {decode_mx_e4m3, decode_mx_e5m2, decode_mx_finite<numerics::kE3M2>, decode_mx_finite<numerics::kE2M3>,
     decode_mx_finite<numerics::kE2M1>, decode_mx_int8},
};

}  // namespace quantaria::ops::QUANTARIA_ISA
