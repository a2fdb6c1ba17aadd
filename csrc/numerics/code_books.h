#pragma once

#include <cstdint>

/// The code books of block-wise quantization: each a rising list of values in [-1, 1], the thresholds
/// between neighbours, and the bit pattern that stands for each value.
namespace quantaria::numerics {

/// A 4-bit book. `size` values are used; the rest repeats the last one behind an unreachable threshold.
struct Book16 {
  int size;
  float values[16];      // rising
  float thresholds[16];  // value i + 1 is taken iff v > thresholds[i]; +infinity from size - 1 on
  uint8_t patterns[16];  // stored code of value i
  float decoded[16];     // value of stored code c
};

namespace detail {

constexpr Book16 make_book(int size, const float (&values)[16], const uint8_t (&patterns)[16]) {
  Book16 book{};
  book.size = size;
  for (int i = 0; i < 16; ++i) {
    const int used = i < size ? i : size - 1;
    book.values[i] = values[used];
    book.patterns[i] = patterns[used];
    // Rounded to float32 like every step of the rule; halving is exact.
    book.thresholds[i] = i + 1 < size ? (values[i] + values[i + 1]) / 2 : __builtin_inff();
  }
  for (int i = 0; i < size; ++i) book.decoded[book.patterns[i]] = book.values[i];
  return book;
}

}  // namespace detail

/// 16 quantiles of the normal distribution, 0 among them (QLoRA, arXiv 2305.14314).
inline constexpr Book16 kNf4 = detail::make_book(
    16,
    {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f, -0.28444138169288635f,
     -0.18477343022823334f, -0.09105003625154495f, 0.0f, 0.07958029955625534f, 0.16093020141124725f,
     0.24611230194568634f, 0.33791524171829224f, 0.44070982933044434f, 0.5626170039176941f,
     0.7229568362236023f, 1.0f},
    {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});

/// bitsandbytes' FP4 (not OCP's E2M1). Its patterns are not in rising order; 8 also reads as zero.
inline constexpr Book16 kFp4 = detail::make_book(
    15,
    {-1.0f, -0.6666666865348816f, -0.5f, -0.3333333432674408f, -0.25f, -0.1666666716337204f,
     -0.0052083334885537624f, 0.0f, 0.0052083334885537624f, 0.1666666716337204f, 0.25f, 0.3333333432674408f,
     0.5f, 0.6666666865348816f, 1.0f},
    {11, 10, 13, 12, 15, 14, 9, 0, 1, 6, 7, 4, 5, 2, 3});

/// Sign (bit 3) and the magnitudes {0, 2^-6, ..., 2^0}; 8 also reads as zero.
inline constexpr Book16 kE3M0 = detail::make_book(
    15,
    {-1.0f, -0.5f, -0.25f, -0.125f, -0.0625f, -0.03125f, -0.015625f, 0.0f, 0.015625f, 0.03125f, 0.0625f, 0.125f,
     0.25f, 0.5f, 1.0f},
    {15, 14, 13, 12, 11, 10, 9, 0, 1, 2, 3, 4, 5, 6, 7});

/// A 256-entry book whose codes are in rising order of value.
struct Book256 {
  float values[256];
  float thresholds[256];  // code i + 1 is taken iff v > thresholds[i]; the last is +infinity
};

namespace detail {

constexpr Book256 make_dynamic() {
  Book256 book{};
  const float powers[7] = {1e-6f, 1e-5f, 1e-4f, 1e-3f, 1e-2f, 1e-1f, 1.0f};
  // Positive values come out rising: decades outside, their 2^e intervals of [0.1, 1] inside. The
  // boundaries follow torch.linspace: from below in the lower half, from above in the upper one.
  int positive = 128;
  for (int e = 0; e < 7; ++e) {
    const int intervals = 1 << e;
    const float step = (1.0f - 0.1f) / static_cast<float>(intervals);
    float below = 0.1f;
    for (int j = 1; j <= intervals; ++j) {
      const double from_low = static_cast<double>(0.1f) + static_cast<double>(step) * j;
      const double from_high = 1.0 - static_cast<double>(step) * (intervals - j);
      const float above = static_cast<float>(j < (intervals + 1) / 2 ? from_low : from_high);
      const float value = powers[e] * ((below + above) / 2);
      book.values[positive] = value;
      book.values[254 - positive] = -value;
      ++positive;
      below = above;
    }
  }
  book.values[127] = 0.0f;
  book.values[255] = 1.0f;
  for (int i = 0; i < 255; ++i) book.thresholds[i] = (book.values[i] + book.values[i + 1]) / 2;
  book.thresholds[255] = __builtin_inff();
  return book;
}

}  // namespace detail

/// bitsandbytes' signed dynamic map: for e = 0..6, 2^e values in the decade below 10^(e-6), both signs,
/// and 0 and 1.
inline constexpr Book256 kDynamic8 = detail::make_dynamic();

}  // namespace quantaria::numerics
