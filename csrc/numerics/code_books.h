#pragma once

#include <cstdint>

/// The code books of block-wise quantization: each a rising list of values in [-1, 1], the thresholds
/// between neighbours, and the bit pattern that stands for each value.
namespace quantaria::numerics {

/// [-1, 1] in 32 buckets of equal width, 0 between two of them: v lies in bucket
/// trunc(v * kBucketsPerUnit + kBucketOfZero).
inline constexpr int kBuckets = 32;
inline constexpr float kBucketsPerUnit = 15.5f;
inline constexpr float kBucketOfZero = 16.0f;

/// A 4-bit book. `size` values are used; the rest repeats the last one behind an unreachable threshold.
struct Book16 {
  int size;
  float values[16];      // rising
  float thresholds[16];  // value i + 1 is taken iff v > thresholds[i]; +infinity from size - 1 on
  uint8_t patterns[16];  // stored code of value i
  float decoded[16];     // value of stored code c
  // Where no bucket holds two thresholds, the rank of v (its index in `values`) is the bucket's
  // bucket_below, and one more iff v > bucket_threshold: two look-ups instead of a search.
  bool one_per_bucket;
  int32_t bucket_below[kBuckets];
  float bucket_threshold[kBuckets];
};

namespace detail {

constexpr int bucket_of(float v) { return static_cast<int>(v * kBucketsPerUnit + kBucketOfZero); }

constexpr void fill_buckets(Book16& book) {
  // Values this near a border may round into the next bucket, so no threshold may be.
  constexpr float kMargin = 0x1p-16f;
  for (int b = 0; b < kBuckets; ++b) book.bucket_threshold[b] = __builtin_inff();
  book.one_per_bucket = true;
  for (int i = 0; i + 1 < book.size; ++i) {
    const float threshold = book.thresholds[i];
    const int bucket = bucket_of(threshold);
    if (bucket_of(threshold - kMargin) != bucket_of(threshold + kMargin)) book.one_per_bucket = false;
    if (book.bucket_threshold[bucket] != __builtin_inff()) book.one_per_bucket = false;
    book.bucket_threshold[bucket] = threshold;
    for (int b = bucket + 1; b < kBuckets; ++b) ++book.bucket_below[b];
  }
}

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
  fill_buckets(book);
  return book;
}

}  // namespace detail

/// 16 quantiles of the normal distribution, 0 among them (QLoRA, arXiv 2305.14314).
inline constexpr Book16 kNf4 =
    detail::make_book(16,
                      {-1.0f, -0.6961928009986877f, -0.5250730514526367f, -0.39491748809814453f,
                       -0.28444138169288635f, -0.18477343022823334f, -0.09105003625154495f, 0.0f,
                       0.07958029955625534f, 0.16093020141124725f, 0.24611230194568634f, 0.33791524171829224f,
                       0.44070982933044434f, 0.5626170039176941f, 0.7229568362236023f, 1.0f},
                      {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15});

/// bitsandbytes' FP4 (not OCP's E2M1). Its patterns are not in rising order; 8 also reads as zero.
inline constexpr Book16 kFp4 =
    detail::make_book(15,
                      {-1.0f, -0.6666666865348816f, -0.5f, -0.3333333432674408f, -0.25f, -0.1666666716337204f,
                       -0.0052083334885537624f, 0.0f, 0.0052083334885537624f, 0.1666666716337204f, 0.25f,
                       0.3333333432674408f, 0.5f, 0.6666666865348816f, 1.0f},
                      {11, 10, 13, 12, 15, 14, 9, 0, 1, 6, 7, 4, 5, 2, 3});

/// Sign (bit 3) and the magnitudes {0, 2^-6, ..., 2^0}; 8 also reads as zero.
inline constexpr Book16 kE3M0 =
    detail::make_book(15,
                      {-1.0f, -0.5f, -0.25f, -0.125f, -0.0625f, -0.03125f, -0.015625f, 0.0f, 0.015625f,
                       0.03125f, 0.0625f, 0.125f, 0.25f, 0.5f, 1.0f},
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
