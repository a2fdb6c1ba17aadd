#include "cpu/lanes.h"
#include "numerics/bfloat16.h"
#include "ops/gemm/pack.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

#if defined(__AVX512F__)

/// A square of sixteen words each way, transposed in registers: pairs, fours, then blocks of four exchange
/// places.
void transpose(__m512i (&x)[16]) {
  __m512i y[16];
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    y[i] = _mm512_unpacklo_epi32(x[i], x[i + 1]);
    y[i + 1] = _mm512_unpackhi_epi32(x[i], x[i + 1]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 16; i += 4) {
    x[i] = _mm512_unpacklo_epi64(y[i], y[i + 2]);
    x[i + 1] = _mm512_unpackhi_epi64(y[i], y[i + 2]);
    x[i + 2] = _mm512_unpacklo_epi64(y[i + 1], y[i + 3]);
    x[i + 3] = _mm512_unpackhi_epi64(y[i + 1], y[i + 3]);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    y[i] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0x88);
    y[i + 4] = _mm512_shuffle_i32x4(x[i], x[i + 4], 0xdd);
    y[i + 8] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0x88);
    y[i + 12] = _mm512_shuffle_i32x4(x[i + 8], x[i + 12], 0xdd);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    x[i] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0x88);
    x[i + 8] = _mm512_shuffle_i32x4(y[i], y[i + 8], 0xdd);
    x[i + 4] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0x88);
    x[i + 12] = _mm512_shuffle_i32x4(y[i + 4], y[i + 12], 0xdd);
  }
}

/// Words [0, done) where whole squares fit.
int64_t interleave_squares(const uint32_t* const* rows, int count, int64_t words, uint32_t* to,
                           int64_t stride) {
  const auto wanted = static_cast<__mmask16>((1u << count) - 1);
  int64_t w = 0;
  for (; w + 16 <= words; w += 16) {
    __m512i x[16];
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) x[r] = _mm512_loadu_si512(rows[r < count ? r : 0] + w);
    transpose(x);
    // Masked stores take several times as long. Where steps lie side by side and another square follows, what
    // is stored beyond a step is what the next store overwrites.
    if (stride == count && w + 32 <= words) {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_storeu_si512(to + (w + i) * stride, x[i]);
    } else {
#pragma GCC unroll 16
      for (int i = 0; i < 16; ++i) _mm512_mask_storeu_epi32(to + (w + i) * stride, wanted, x[i]);
    }
  }
  return w;
}
int64_t separate_squares(const uint32_t* from, int64_t stride, int64_t words, uint32_t* const rows[16]) {
  int64_t w = 0;
  for (; w + 16 <= words; w += 16) {
    __m512i x[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; ++i) x[i] = _mm512_loadu_si512(from + (w + i) * stride);
    transpose(x);
#pragma GCC unroll 16
    for (int r = 0; r < 16; ++r) _mm512_storeu_si512(rows[r] + w, x[r]);
  }
  return w;
}

#else

int64_t interleave_squares(const uint32_t* const*, int, int64_t, uint32_t*, int64_t) { return 0; }
int64_t separate_squares(const uint32_t*, int64_t, int64_t, uint32_t* const*) { return 0; }

#endif

void interleave(const uint32_t* const* rows, int count, int64_t words, uint32_t* to, int64_t stride) {
  if (count == 1 && stride == 1) {
    std::memcpy(to, rows[0], static_cast<size_t>(words) * 4);
    return;
  }
  // Rows of 16-bit values may start between words.
  for (int64_t w = interleave_squares(rows, count, words, to, stride); w < words; ++w)
    for (int r = 0; r < count; ++r)
      std::memcpy(to + w * stride + r, reinterpret_cast<const char*>(rows[r]) + 4 * w, 4);
}
void separate(const uint32_t* from, int64_t stride, int64_t words, uint32_t* const rows[16]) {
  for (int64_t w = separate_squares(from, stride, words, rows); w < words; ++w)
    for (int r = 0; r < 16; ++r) rows[r][w] = from[w * stride + r];
}

/// Short rows: a call to memcpy for each would cost more than the copy.
void copy_rows(const uint32_t* from, int64_t from_stride, int64_t rows, int64_t n, uint32_t* to,
               int64_t to_stride) {
  for (int64_t r = 0; r < rows; ++r, from += from_stride, to += to_stride) {
    int64_t c = 0;
    for (; c + kLanes <= n; c += kLanes) store(to + c, load(from + c));
    for (; c < n; ++c) to[c] = from[c];
  }
}

void put_row(const float* from, int64_t n, float scale, bool accumulate, float* to) {
  if (accumulate) {
    for (int64_t c = 0; c < n; ++c) to[c] += scale * from[c];
  } else {
    for (int64_t c = 0; c < n; ++c) to[c] = scale * from[c];
  }
}

void pair(const uint16_t* even, const uint16_t* odd, int64_t n, uint32_t* to) {
  for (int64_t c = 0; c < n; ++c) to[c] = even[c] | uint32_t{odd[c]} << 16;
}

void round_to_bfloat16(const float* x, int64_t n, float* to) {
  for (int64_t c = 0; c < n; ++c) to[c] = numerics::float_from_bfloat16(numerics::bfloat16_from_float(x[c]));
}

void reorder(const float* x, int64_t n, const int32_t order[16], float* to) {
  const Ints at = load(order);
  for (int64_t c = 0; c < n; c += kLanes) store(to + c, look_up(load(x + c), at));
}

/// Codes of one group; returns their sum.
int32_t encode_group(const float* x, int64_t length, float boost, float factor, int8_t* codes) {
  // Added to it, a value of up to 22 bits is rounded to nearest even into the low bits of the sum's pattern.
  const Floats magic = splat(0x1.8p23f);
  Ints total = splat(int32_t{0});
  for_each_lanes(x, length, [&](int64_t first, const Floats& values) {
    const Ints code = bits(values * splat(boost) * splat(factor) + magic) - bits(magic);
    total = total + code;
    if (length - first >= kLanes) return store_low(reinterpret_cast<uint8_t*>(codes + first), code);
    uint8_t low[kLanes];
    store_low(low, code);
    std::memcpy(codes + first, low, static_cast<size_t>(length - first));
  });
  return fold(total, [](auto a, auto b) { return a + b; });
}

/// A group with NaN or infinities. Beside a single infinity all else is 0: its own terms are infinite, with
/// their signs. Several could cancel or not, which no scale can say: it is NaN then, and so every sum.
void encode_not_finite(const float* x, int64_t length, int8_t* codes, float* scale, float* sum) {
  std::memset(codes, 0, static_cast<size_t>(length));
  int64_t found = 0;
  int64_t place = 0;
  bool infinite = false;
  for (int64_t c = 0; c < length; ++c) {
    const uint32_t magnitude = numerics::bits_of(x[c]) & 0x7fffffffu;
    if (magnitude < numerics::kInfinityBits) continue;
    ++found;
    place = c;
    infinite = magnitude == numerics::kInfinityBits;
  }
  *scale = numerics::kQuietNaN;
  *sum = 0;
  if (found > 1 || !infinite) return;
  codes[place] = x[place] > 0 ? 127 : -127;
  *scale = __builtin_inff();
  *sum = codes[place];
}

void encode_int8(const float* x, int64_t groups, int64_t length, int8_t* codes, float* scales, float* sums,
                 int64_t stride) {
  for (int64_t g = 0; g < groups; ++g, x += length, codes += length) {
    Ints magnitudes = splat(int32_t{0});
    for_each_lanes(x, length,
                   [&](int64_t, const Floats& v) { magnitudes = larger(magnitudes, magnitude_bits(v)); });
    const auto most = static_cast<uint32_t>(largest_of(magnitudes));
    if (most >= numerics::kInfinityBits) {
      encode_not_finite(x, length, codes, scales + g * stride, sums + g * stride);
      continue;
    }
    const float largest = numerics::float_of(most);
    // 127 / largest of a denormal would be infinite.
    const float boost = largest < 0x1p-60f ? 0x1p64f : 1.0f;
    int32_t sum = 0;
    if (largest > 0)
      sum = encode_group(x, length, boost, 127.0f / (largest * boost), codes);
    else
      std::memset(codes, 0, static_cast<size_t>(length));
    scales[g * stride] = largest / 127.0f;
    sums[g * stride] = static_cast<float>(sum);
  }
}

}  // namespace

extern const PackKernels pack_kernels;
const PackKernels pack_kernels = {interleave, separate,          copy_rows, put_row,
                                  pair,       round_to_bfloat16, reorder,   encode_int8};

}  // namespace quantaria::ops::QUANTARIA_ISA
