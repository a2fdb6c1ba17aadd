#include "ops/copy/convert.h"

#include "numerics/bfloat16.h"
#include "numerics/float8.h"
#include "numerics/half.h"

namespace quantaria::ops::QUANTARIA_ISA {
namespace {

/// Casts go through float32, or int64 between integers: two short loops over a chunk in L1 instead of a
/// loop for each of the hundred pairs.
constexpr int64_t kChunk = 256;

template <class From, class F>
void map_row(const std::byte* from, int64_t n, auto* to, F f) {
  const From* const values = reinterpret_cast<const From*>(from);
  for (int64_t i = 0; i < n; ++i) to[i] = f(values[i]);
}

template <class To, class F>
void map_row_to(const auto* from, int64_t n, std::byte* to, F f) {
  To* const values = reinterpret_cast<To*>(to);
  for (int64_t i = 0; i < n; ++i) values[i] = f(from[i]);
}

void floats_from(DType dtype, const std::byte* from, int64_t n, float* to) {
  switch (dtype) {
    case DType::float16:
      return map_row<uint16_t>(from, n, to, numerics::float_from_half);
    case DType::bfloat16:
      return map_row<uint16_t>(from, n, to, numerics::float_from_bfloat16);
    case DType::float8_e4m3:
      return map_row<uint8_t>(from, n, to, numerics::float_from_e4m3);
    case DType::float8_e5m2:
      return map_row<uint8_t>(from, n, to, numerics::float_from_e5m2);
    default:
      return map_row<float>(from, n, to, [](float x) { return x; });
  }
}

void integers_from(DType dtype, const std::byte* from, int64_t n, int64_t* to) {
  const auto widened = [](auto x) { return int64_t{x}; };
  switch (dtype) {
    case DType::int8:
      return map_row<int8_t>(from, n, to, widened);
    case DType::uint8:
      return map_row<uint8_t>(from, n, to, widened);
    case DType::int16:
      return map_row<int16_t>(from, n, to, widened);
    case DType::int32:
      return map_row<int32_t>(from, n, to, widened);
    case DType::boolean:
      return map_row<uint8_t>(from, n, to, [](uint8_t x) { return int64_t{x != 0}; });
    default:
      return map_row<int64_t>(from, n, to, widened);
  }
}

/// Of a two's complement or unsigned type.
template <class Int>
struct Range {
  static constexpr bool kSigned = Int(-1) < Int(0);
  static constexpr int kBits = 8 * sizeof(Int);
  static constexpr Int kHigh = static_cast<Int>(~uint64_t{0} >> (64 - kBits + kSigned));
  static constexpr Int kLow = static_cast<Int>(kSigned ? -int64_t{kHigh} - 1 : 0);
};

/// To nearest even, clamped; NaN gives 0.
template <class Int>
Int integer_from_float(float x) {
  // Bounds of an integer type are powers of two or 0, the upper one just past the largest value.
  constexpr float kLow = static_cast<float>(Range<Int>::kLow);
  constexpr float kPastHigh = static_cast<float>(Range<Int>::kHigh / 2 + 1) * 2.0f;
  const float rounded = __builtin_nearbyintf(x);
  if (numerics::is_nan(x)) return 0;
  if (rounded >= kPastHigh) return Range<Int>::kHigh;
  if (rounded < kLow) return Range<Int>::kLow;
  return static_cast<Int>(rounded);
}

template <class Int>
Int integer_from_integer(int64_t x) {
  if (x < int64_t{Range<Int>::kLow}) return Range<Int>::kLow;
  if (x > int64_t{Range<Int>::kHigh}) return Range<Int>::kHigh;
  return static_cast<Int>(x);
}

void floats_to(DType dtype, const float* from, int64_t n, std::byte* to) {
  switch (dtype) {
    case DType::float32:
      return map_row_to<float>(from, n, to, [](float x) { return x; });
    case DType::float16:
      return map_row_to<uint16_t>(from, n, to, numerics::half_from_float);
    case DType::bfloat16:
      return map_row_to<uint16_t>(from, n, to, numerics::bfloat16_from_float);
    case DType::float8_e4m3:
      return map_row_to<uint8_t>(from, n, to, numerics::e4m3_from_float);
    case DType::float8_e5m2:
      return map_row_to<uint8_t>(from, n, to, numerics::e5m2_from_float);
    case DType::int8:
      return map_row_to<int8_t>(from, n, to, integer_from_float<int8_t>);
    case DType::uint8:
      return map_row_to<uint8_t>(from, n, to, integer_from_float<uint8_t>);
    case DType::int16:
      return map_row_to<int16_t>(from, n, to, integer_from_float<int16_t>);
    case DType::int32:
      return map_row_to<int32_t>(from, n, to, integer_from_float<int32_t>);
    case DType::int64:
      return map_row_to<int64_t>(from, n, to, integer_from_float<int64_t>);
    case DType::boolean:
      return map_row_to<uint8_t>(from, n, to, [](float x) { return static_cast<uint8_t>(x != 0); });
  }
}

void integers_to(DType dtype, const int64_t* from, int64_t n, std::byte* to) {
  switch (dtype) {
    case DType::int8:
      return map_row_to<int8_t>(from, n, to, integer_from_integer<int8_t>);
    case DType::uint8:
      return map_row_to<uint8_t>(from, n, to, integer_from_integer<uint8_t>);
    case DType::int16:
      return map_row_to<int16_t>(from, n, to, integer_from_integer<int16_t>);
    case DType::int32:
      return map_row_to<int32_t>(from, n, to, integer_from_integer<int32_t>);
    case DType::int64:
      return map_row_to<int64_t>(from, n, to, [](int64_t x) { return x; });
    case DType::boolean:
      return map_row_to<uint8_t>(from, n, to, [](int64_t x) { return static_cast<uint8_t>(x != 0); });
    default:
      float floats[kChunk];
      for (int64_t i = 0; i < n; ++i) floats[i] = static_cast<float>(from[i]);
      return floats_to(dtype, floats, n, to);
  }
}

}  // namespace

/// The signature is convert_row's (ops/copy/convert.h).
extern void convert(DType from_dtype, const std::byte* from, DType to_dtype, std::byte* to, int64_t n);
void convert(DType from_dtype, const std::byte* from, DType to_dtype, std::byte* to, int64_t n) {
  float floats[kChunk];
  int64_t integers[kChunk];
  for (int64_t first = 0; first < n; first += kChunk) {
    const int64_t count = n - first < kChunk ? n - first : kChunk;
    const std::byte* const source = from + first * size_of(from_dtype);
    std::byte* const target = to + first * size_of(to_dtype);
    if (is_float(from_dtype)) {
      floats_from(from_dtype, source, count, floats);
      floats_to(to_dtype, floats, count, target);
    } else {
      integers_from(from_dtype, source, count, integers);
      integers_to(to_dtype, integers, count, target);
    }
  }
}

}  // namespace quantaria::ops::QUANTARIA_ISA
