#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "check.h"
#include "numerics/bfloat16.h"
#include "numerics/code_books.h"
#include "numerics/e8m0.h"
#include "numerics/float8.h"
#include "numerics/half.h"

namespace {

using namespace quantaria::numerics;

/// Value of a code by the definition of a binary float, in double.
double defined_value(int exponent_bits, int mantissa_bits, int bias, uint32_t code) {
  const uint32_t mantissa = code & ((1u << mantissa_bits) - 1);
  const uint32_t exponent = code >> mantissa_bits & ((1u << exponent_bits) - 1);
  const double sign = code >> (exponent_bits + mantissa_bits) & 1u ? -1 : 1;
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - bias - mantissa_bits);
  return sign *
         std::ldexp((1 << mantissa_bits) + mantissa, static_cast<int>(exponent) - bias - mantissa_bits);
}

/// Code of |x| by search among all finite values, saturating; ties by the rounding's rule.
uint32_t searched_code(const SmallFloat& f, double magnitude, Rounding rounding) {
  const auto value = [&](uint32_t code) {
    return defined_value(f.exponent_bits, f.mantissa_bits, f.bias, code);
  };
  uint32_t below = 0;
  while (below < f.max_code && value(below + 1) <= magnitude) ++below;
  if (below == f.max_code || rounding == Rounding::floor) return below;
  const double to_lower = magnitude - value(below);
  const double to_upper = value(below + 1) - magnitude;
  if (to_lower != to_upper) return to_lower < to_upper ? below : below + 1;
  if (rounding == Rounding::nearest) return below + 1;
  return below + below % 2;
}

/// Every code's value, every midpoint, and the float32 neighbours of both, both signs, and extremes.
std::vector<float> interesting_values(const SmallFloat& f) {
  std::vector<float> values{0.0f, 1e-45f, 1e-38f, 1e30f, std::numeric_limits<float>::infinity()};
  for (uint32_t code = 0; code <= f.max_code; ++code) {
    const double here = defined_value(f.exponent_bits, f.mantissa_bits, f.bias, code);
    const double next = defined_value(f.exponent_bits, f.mantissa_bits, f.bias, code + 1);
    for (const double x : {here, (here + next) / 2}) {
      const auto exact = static_cast<float>(x);
      for (const float y : {exact, std::nextafter(exact, 0.0f), std::nextafter(exact, 1e9f)})
        values.push_back(y);
    }
  }
  const size_t positive = values.size();
  for (size_t i = 0; i < positive; ++i) values.push_back(-values[i]);
  return values;
}

template <SmallFloat F, Rounding R>
void check_encoder() {
  for (const float x : interesting_values(F)) {
    const uint32_t sign = (std::signbit(x) ? 1u : 0u) << (F.bits() - 1);
    CHECK_EQ((encode_saturating<F, R>(x)), searched_code(F, std::abs(static_cast<double>(x)), R) + sign);
  }
}

template <SmallFloat F>
void check_format() {
  for (uint32_t code = 0; code <= F.max_code; ++code) {
    CHECK_EQ(decode_finite<F>(code), defined_value(F.exponent_bits, F.mantissa_bits, F.bias, code));
    CHECK_EQ(encode_saturating<F>(decode_finite<F>(code)), code);
  }
  check_encoder<F, Rounding::even>();
  check_encoder<F, Rounding::nearest>();
  check_encoder<F, Rounding::floor>();
}

TEST("small floats: every code decodes by definition, every midpoint rounds as each rounding says") {
  check_format<kE2M1>();
  check_format<kE2M3>();
  check_format<kE3M2>();
  check_format<kE4M3>();
  check_format<kE5M2>();
}

TEST("float8: NaN stays NaN, infinities saturate, all bytes decode by definition") {
  const float infinity = std::numeric_limits<float>::infinity();
  CHECK_EQ(e4m3_from_float(infinity), 0x7e);
  CHECK_EQ(e4m3_from_float(-infinity), 0xfe);
  CHECK_EQ(e5m2_from_float(infinity), 0x7b);
  CHECK_EQ(e5m2_from_float(-infinity), 0xfb);
  CHECK(std::isnan(float_from_e4m3(e4m3_from_float(std::nanf("")))));
  CHECK(std::isnan(float_from_e5m2(e5m2_from_float(-std::nanf("")))));
  for (uint32_t code = 0; code < 256; ++code) {
    const auto byte = static_cast<uint8_t>(code);
    if ((code & 0x7f) == 0x7f)
      CHECK(std::isnan(float_from_e4m3(byte)));
    else
      CHECK_EQ(float_from_e4m3(byte), defined_value(4, 3, 7, code));
    if ((code & 0x7f) == 0x7c)
      CHECK(std::isinf(float_from_e5m2(byte)));
    else if ((code & 0x7f) > 0x7c)
      CHECK(std::isnan(float_from_e5m2(byte)));
    else
      CHECK_EQ(float_from_e5m2(byte), defined_value(5, 2, 15, code));
  }
}

TEST("half: all 65536 patterns decode by definition and come back") {
  for (uint32_t code = 0; code < 65536; ++code) {
    const auto half = static_cast<uint16_t>(code);
    const float value = float_from_half(half);
    if ((code & 0x7fff) > 0x7c00) {
      CHECK(std::isnan(value) && std::isnan(float_from_half(half_from_float(value))));
      continue;
    }
    if ((code & 0x7fff) == 0x7c00)
      CHECK(std::isinf(value));
    else
      CHECK_EQ(static_cast<double>(value), defined_value(5, 10, 15, code));
    CHECK_EQ(half_from_float(value), half);
  }
}

TEST("half and bfloat16: midpoints go to the even neighbour, their float neighbours to the near one") {
  for (uint32_t code = 0; code < 0x7bff; ++code) {
    const float low = float_from_half(static_cast<uint16_t>(code));
    const float high = float_from_half(static_cast<uint16_t>(code + 1));
    const float middle = (low + high) / 2;
    CHECK_EQ(half_from_float(middle), code + code % 2);
    CHECK_EQ(half_from_float(std::nextafter(middle, low)), code);
    CHECK_EQ(half_from_float(std::nextafter(middle, high)), code + 1);
  }
  CHECK_EQ(half_from_float(65519.996f), 0x7bff);
  CHECK_EQ(half_from_float(65520.0f), 0x7c00);
  for (uint32_t code = 0; code < 0x7f7f; ++code) {
    const uint32_t middle = code << 16 | 0x8000u;
    CHECK_EQ(bfloat16_from_float(float_of(middle)), code + code % 2);
    CHECK_EQ(bfloat16_from_float(float_of(middle - 1)), code);
    CHECK_EQ(bfloat16_from_float(float_of(middle + 1)), code + 1);
  }
  CHECK_EQ(bfloat16_from_float(std::numeric_limits<float>::max()), 0x7f80);
  CHECK(std::isnan(float_from_bfloat16(bfloat16_from_float(float_of(0x7f800001u)))));
}

TEST("e8m0: bytes are powers of two, the block scale is the floor of the logarithm less emax") {
  for (int code = 0; code < 255; ++code) {
    CHECK_EQ(static_cast<double>(float_from_e8m0(static_cast<uint8_t>(code))), std::ldexp(1.0, code - 127));
    CHECK_EQ(static_cast<double>(inverse_of_e8m0(static_cast<uint8_t>(code))), std::ldexp(1.0, 127 - code));
  }
  CHECK(std::isnan(float_from_e8m0(255)));
  CHECK_EQ(e8m0_of_absmax(7.9f, 2), 127);
  CHECK_EQ(e8m0_of_absmax(8.0f, 2), 128);
  CHECK_EQ(e8m0_of_absmax(0.0f, 2), 0);
  CHECK_EQ(e8m0_of_absmax(1e-45f, 0), 0);
  CHECK_EQ(e8m0_of_absmax(std::numeric_limits<float>::max(), 0), 254);
}

TEST(
    "code books rise, thresholds are midpoints in float32, buckets give the rank of every threshold's "
    "sides") {
  for (const Book16* book : {&kNf4, &kFp4, &kE3M0}) {
    for (int i = 0; i + 1 < book->size; ++i) {
      CHECK(book->values[i] < book->values[i + 1]);
      const double middle = (static_cast<double>(book->values[i]) + book->values[i + 1]) / 2;
      CHECK_EQ(book->thresholds[i], static_cast<float>(middle));
      CHECK_EQ(book->decoded[book->patterns[i]], book->values[i]);
      if (!book->one_per_bucket) continue;
      for (const float v : {book->thresholds[i], std::nextafter(book->thresholds[i], 2.0f)}) {
        const int bucket = static_cast<int>(v * kBucketsPerUnit + kBucketOfZero);
        const int rank = book->bucket_below[bucket] + (v > book->bucket_threshold[bucket] ? 1 : 0);
        CHECK_EQ(rank, v > book->thresholds[i] ? i + 1 : i);
      }
    }
  }
  CHECK(kNf4.one_per_bucket && kFp4.one_per_bucket && !kE3M0.one_per_bucket);
}

TEST("the dynamic map has the published first, middle and last values") {
  CHECK_EQ(kDynamic8.values[0], -0.992968738f);
  CHECK_EQ(kDynamic8.values[1], -0.978906274f);
  CHECK_EQ(kDynamic8.values[124], -7.7499999e-06f);
  CHECK_EQ(kDynamic8.values[126], -5.50000038e-07f);
  CHECK_EQ(kDynamic8.values[127], 0.0f);
  CHECK_EQ(kDynamic8.values[131], 2.12499981e-05f);
  CHECK_EQ(kDynamic8.values[254], 0.992968738f);
  CHECK_EQ(kDynamic8.values[255], 1.0f);
  for (int i = 0; i < 255; ++i) CHECK(kDynamic8.values[i] < kDynamic8.values[i + 1]);
}

}  // namespace
