#pragma once

#include "cpu/lanes.h"
#include "numerics/code_books.h"

/// Ranks in a 4-bit code book, sixteen lanes at a time. For *_isa.cc files only.
namespace quantaria::ops::QUANTARIA_ISA {

#if defined(__AVX512F__)
/// The book in registers, for ranks by one look-up and one compare.
struct BucketSearch {
  explicit BucketSearch(const numerics::Book16& book)
      : threshold{load(book.bucket_threshold), load(book.bucket_threshold + kLanes)} {
    std::memcpy(below, book.bucket_below, sizeof below);
  }

  /// The number of thresholds under v.
  [[gnu::always_inline]] Ints rank_of(const Floats& v) const {
    const Ints bucket =
        truncate(multiply_add(v, splat(numerics::kBucketsPerUnit), splat(numerics::kBucketOfZero)));
    const Floats own = {{__builtin_shuffle(threshold[0].part[0], threshold[1].part[0], bucket.part[0])}};
    const Ints lower = {{__builtin_shuffle(below[0].part[0], below[1].part[0], bucket.part[0])}};
    return lower - (v > own);
  }

  Floats threshold[2];
  Ints below[2];
};

#endif

/// The book in registers, for ranks by a binary search of four compares.
struct BinarySearch {
  explicit BinarySearch(const numerics::Book16& book)
      : thresholds(load(book.thresholds)), middle(splat(book.thresholds[7])) {}

  /// The number of thresholds under v.
  [[gnu::always_inline]] Ints rank_of(const Floats& v) const {
    Ints rank = (v > middle) & splat(int32_t{8});
    for (int32_t step = 4; step > 0; step /= 2) {
      const Floats threshold = look_up(thresholds, rank + splat(step - 1));
      rank = rank + ((v > threshold) & splat(step));
    }
    return rank;
  }

  Floats thresholds;
  Floats middle;
};

/// What a block's elements are multiplied by: 1 / absmax, in two factors because the reciprocal of an
/// absmax under 2^-128 is beyond float32. A block of zeros has 0.
struct Normaliser {
  float first;
  float second;
};

inline constexpr float kLeastWithReciprocal = 0x1p-126f;

QUANTARIA_LANES Normaliser normaliser_of(float absmax) {
  if (absmax >= kLeastWithReciprocal) return {1.0f, 1.0f / absmax};
  const float reciprocal = absmax == 0.0f ? 0.0f : 1.0f / absmax;
  if (numerics::is_finite(reciprocal)) return {1.0f, reciprocal};
  return {0x1p64f, 1.0f / (absmax * 0x1p64f)};
}

}  // namespace quantaria::ops::QUANTARIA_ISA
