#include <algorithm>
#include <cstring>
#include <limits>

#include "numerics/code_books.h"
#include "numerics/e8m0.h"
#include "numerics/float8.h"
#include "quantize_test.h"

namespace {

using namespace quantaria;
using namespace quantaria::ops;
using namespace quantaria::test;

// ------------------------------------------------------------------------------------------- code books

struct BookResult {
  std::vector<uint8_t> packed;
  std::vector<float> absmax;
  std::vector<uint8_t> absmax_codes;
  std::vector<float> absmax_scales;
  float offset = -1;
  std::vector<float> values;
  ErrorSums sums;

  bool operator==(const BookResult& other) const {
    return packed == other.packed && bits_of_all(absmax) == bits_of_all(other.absmax) &&
           absmax_codes == other.absmax_codes &&
           bits_of_all(absmax_scales) == bits_of_all(other.absmax_scales) && offset == other.offset &&
           values == other.values && sums.error == other.sums.error && sums.weight == other.sums.weight;
  }
};

int bits_of(Codebook book) { return book == Codebook::dynamic8 ? 8 : 4; }

BookResult run(ThreadPool& pool, const Weight& w, const CodebookScheme& scheme) {
  const auto blocks = static_cast<size_t>(block_count(scheme, w.rows, w.cols));
  BookResult result;
  result.packed.assign(static_cast<size_t>(packed_row_bytes(w.rows * w.cols, bits_of(scheme.book))), 0xa5);
  result.absmax.assign(scheme.double_quant ? 0 : blocks, std::nanf(""));
  result.absmax_codes.assign(scheme.double_quant ? blocks : 0, 0xa5);
  result.absmax_scales.assign(scheme.double_quant ? (blocks + 255) / 256 : 0, std::nanf(""));
  quantize_codebook(pool, w.view(), scheme,
                    {result.packed.data(), result.absmax.data(), result.absmax_codes.data(),
                     result.absmax_scales.data(), &result.offset},
                    &result.sums);
  result.values.assign(w.values.size(), std::nanf(""));
  dequantize_codebook(pool, scheme,
                      {result.packed.data(), result.absmax.data(), result.absmax_codes.data(),
                       result.absmax_scales.data(), &result.offset},
                      w.rows, w.cols, DType::float32, reinterpret_cast<std::byte*>(result.values.data()));
  return result;
}

/// Sorted values and the pattern of each.
struct Book {
  std::vector<float> values;
  std::vector<uint8_t> patterns;
};

Book book_of(Codebook book) {
  Book result;
  if (book == Codebook::dynamic8) {
    for (int i = 0; i < 256; ++i) {
      result.values.push_back(numerics::kDynamic8.values[i]);
      result.patterns.push_back(static_cast<uint8_t>(i));
    }
    return result;
  }
  const numerics::Book16& table = book == Codebook::nf4   ? numerics::kNf4
                                  : book == Codebook::fp4 ? numerics::kFp4
                                                          : numerics::kE3M0;
  result.values.assign(table.values, table.values + table.size);
  result.patterns.assign(table.patterns, table.patterns + table.size);
  return result;
}

/// The contract by linear search in float32. Blocks whose reciprocal overflows are held to nearest only.
void check_against_definition(const Weight& w, const CodebookScheme& scheme, const BookResult& actual) {
  const Book book = book_of(scheme.book);
  const int bits = bits_of(scheme.book);
  const int64_t size = w.rows * w.cols;
  for (int64_t first = 0, b = 0; first < size; first += scheme.block_size, ++b) {
    const int64_t last = std::min(size, first + scheme.block_size);
    float absmax = 0;
    for (int64_t k = first; k < last; ++k)
      absmax = std::max(absmax, std::abs(w.values[static_cast<size_t>(k)]));
    if (!scheme.double_quant) CHECK_EQ(actual.absmax[static_cast<size_t>(b)], absmax);
    for (int64_t k = first; k < last; ++k) {
      const float x = w.values[static_cast<size_t>(k)];
      const uint8_t byte = actual.packed[static_cast<size_t>(k * bits / 8)];
      const int code = bits == 8 ? byte : byte >> (k % 2 * 4) & 15;
      if (absmax != 0 && std::isinf(1.0f / absmax)) {
        float nearest = std::numeric_limits<float>::infinity();
        for (const float v : book.values) nearest = std::min(nearest, std::abs(x - v * absmax));
        if (!scheme.double_quant) CHECK_EQ(std::abs(x - actual.values[static_cast<size_t>(k)]), nearest);
        continue;
      }
      const float v = absmax == 0 ? 0.0f : x * (1.0f / absmax);
      size_t rank = 0;
      while (rank + 1 < book.values.size() && v > (book.values[rank] + book.values[rank + 1]) / 2) ++rank;
      CHECK_EQ(code, static_cast<int>(book.patterns[rank]));
      if (!scheme.double_quant) CHECK_EQ(actual.values[static_cast<size_t>(k)], book.values[rank] * absmax);
    }
  }
}

void check_sums(const Weight& w, const std::vector<float>& values, const ErrorSums& sums) {
  ErrorSums expected;
  for (size_t i = 0; i < values.size(); ++i) {
    const double lost = static_cast<double>(w.values[i]) - values[i];
    expected.error += lost * lost;
    expected.weight += static_cast<double>(w.values[i]) * w.values[i];
  }
  CHECK(sums_close(sums.error, expected.error));
  CHECK(sums_close(sums.weight, expected.weight));
}

TEST("code books follow the threshold rule on flat blocks, across rows, on every ISA and thread count") {
  for_each_weight([](const Weight& w) {
    for (const Codebook book : {Codebook::nf4, Codebook::fp4, Codebook::e3m0, Codebook::dynamic8})
      for (const int64_t block : {int64_t{1}, int64_t{33}, int64_t{64}, int64_t{100000}}) {
        const CodebookScheme scheme{book, block, false};
        ThreadPool pool(1);
        const BookResult first = run(pool, w, scheme);
        check_against_definition(w, scheme, first);
        check_sums(w, first.values, first.sums);
        on_every_machine([&](ThreadPool& p) { CHECK(run(p, w, scheme) == first); });
      }
  });
}

TEST("values at and beside every threshold get the documented side") {
  for (const Codebook book : {Codebook::nf4, Codebook::fp4, Codebook::e3m0, Codebook::dynamic8}) {
    const Book sorted = book_of(book);
    Weight w{1, 0, {1.0f}, DType::float32, false, {}};
    for (size_t i = 0; i + 1 < sorted.values.size(); ++i) {
      const float threshold = (sorted.values[i] + sorted.values[i + 1]) / 2;
      for (const float x : {threshold, std::nextafter(threshold, -2.0f), std::nextafter(threshold, 2.0f)})
        w.values.push_back(x);
    }
    w.cols = static_cast<int64_t>(w.values.size());
    store_values(w);
    const CodebookScheme scheme{book, w.cols, false};
    on_every_machine([&](ThreadPool& pool) { check_against_definition(w, scheme, run(pool, w, scheme)); });
  }
}

TEST(
    "double quantization: codes from the exact absmax, absmax within half a step of the map, errors of what "
    "decodes") {
  for (const DType dtype : {DType::float32, DType::bfloat16}) {
    const Weight w = make_weight(300, 130, dtype, true, 9);
    const CodebookScheme plain{Codebook::nf4, 64, false}, nested{Codebook::nf4, 64, true};
    ThreadPool pool(1);
    const BookResult exact = run(pool, w, plain), first = run(pool, w, nested);
    CHECK(first.packed == exact.packed);
    double mean = 0;
    for (const float x : exact.absmax) mean += x;
    mean /= static_cast<double>(exact.absmax.size());
    // All positive, so each of the at most 64 additions that a value passes through costs half a unit of the
    // result.
    CHECK(std::abs(static_cast<double>(first.offset) - mean) <= 64 * 0x1p-24 * mean);
    std::vector<float> absmax(exact.absmax.size());
    decode_nested_absmax(first.absmax_codes.data(), first.absmax_scales.data(), first.offset,
                         static_cast<int64_t>(absmax.size()), absmax.data());
    // The widest gap of the map is 1/64, between its values near 1 and at its lower end.
    for (size_t b = 0; b < absmax.size(); ++b)
      CHECK(std::abs(absmax[b] - exact.absmax[b]) <= first.absmax_scales[b / 256] / 128 * 1.01f);
    check_sums(w, first.values, first.sums);
    on_every_machine([&](ThreadPool& p) { CHECK(run(p, w, nested) == first); });
  }
}

// ------------------------------------------------------------------------------------------ small floats

TEST("fp8: scale absmax / largest, 1 for zeros, codes of w / scale, per row and per tensor") {
  for_each_weight([](const Weight& w) {
    for (const Float8 format : {Float8::e4m3, Float8::e5m2})
      for (const bool per_row : {true, false}) {
        const float largest = format == Float8::e4m3 ? 448.0f : 57344.0f;
        std::vector<float> expected(per_row ? static_cast<size_t>(w.rows) : 1, 0.0f);
        for (int64_t r = 0; r < w.rows; ++r)
          for (int64_t c = 0; c < w.cols; ++c) {
            float& most = expected[per_row ? static_cast<size_t>(r) : 0];
            most = std::max(most, std::abs(w.at(r, c)));
          }
        for (float& x : expected) x = x == 0 ? 1.0f : std::max(x / largest, 1e-45f);
        on_every_machine([&](ThreadPool& pool) {
          std::vector<uint8_t> packed(static_cast<size_t>(w.rows * packed_row_bytes(w.cols, 8)), 0xa5);
          std::vector<float> scales(expected.size(), std::nanf(""));
          ErrorSums sums;
          quantize_fp8(pool, w.view(), {format, per_row}, packed.data(), scales.data(), &sums);
          CHECK(scales == expected);
          std::vector<float> values(w.values.size());
          dequantize_fp8(pool, {format, per_row}, packed.data(), scales.data(), w.rows, w.cols,
                         DType::float32, reinterpret_cast<std::byte*>(values.data()));
          for (int64_t r = 0; r < w.rows; ++r)
            for (int64_t c = 0; c < packed_row_bytes(w.cols, 8); ++c) {
              const uint8_t code = packed[static_cast<size_t>(r * packed_row_bytes(w.cols, 8) + c)];
              const float scale = scales[per_row ? static_cast<size_t>(r) : 0];
              const float x = c < w.cols ? w.at(r, c) / scale : 0.0f;
              const bool e4m3 = format == Float8::e4m3;
              CHECK_EQ(code, e4m3 ? numerics::e4m3_from_float(x) : numerics::e5m2_from_float(x));
              if (c < w.cols)
                CHECK_EQ(values[static_cast<size_t>(r * w.cols + c)],
                         (e4m3 ? numerics::float_from_e4m3(code) : numerics::float_from_e5m2(code)) * scale);
            }
          check_sums(w, values, sums);
        });
      }
  });
}

/// The value that an MX element of x / scale has, in double.
double mx_value(MxElement element, MxRounding rounding, double x) {
  if (element == MxElement::int8) {
    const double steps = std::clamp(x * 64, -127.0, 127.0);
    if (rounding == MxRounding::even) return std::nearbyint(steps) / 64;
    return (rounding == MxRounding::nearest ? std::round(steps) : std::trunc(steps)) / 64;
  }
  constexpr int kMantissa[] = {3, 2, 2, 3, 1}, kLeast[] = {-6, -14, -2, 0, 0};
  constexpr double kLargest[] = {448, 57344, 28, 7.5, 6};
  const auto e = static_cast<size_t>(element);
  const double magnitude = std::min(std::abs(x), kLargest[e]);
  const int exponent = magnitude == 0 ? kLeast[e] : std::max(std::ilogb(magnitude), kLeast[e]);
  const double step = std::ldexp(1.0, exponent - kMantissa[e]);
  const double steps = magnitude / step;
  const double whole = rounding == MxRounding::even      ? std::nearbyint(steps)
                       : rounding == MxRounding::nearest ? std::round(steps)
                                                         : std::trunc(steps);
  return std::copysign(std::min(whole * step, kLargest[e]), x);
}

struct MxResult {
  std::vector<uint8_t> packed;
  std::vector<uint8_t> scales;
  std::vector<float> pre_scale;
  std::vector<float> values;
  ErrorSums sums;
};

MxResult run(ThreadPool& pool, const Weight& w, const MxScheme& scheme) {
  MxResult result;
  result.packed.assign(
      static_cast<size_t>(w.rows * packed_row_bytes(w.cols, mx_element_bits(scheme.element))), 0xa5);
  result.scales.assign(static_cast<size_t>(w.rows * ((w.cols + 31) / 32)), 0xa5);
  result.pre_scale.assign(scheme.pre_scale ? static_cast<size_t>(w.rows) : 0, std::nanf(""));
  quantize_mx(pool, w.view(), scheme, result.packed.data(), result.scales.data(), result.pre_scale.data(),
              &result.sums);
  result.values.assign(w.values.size(), std::nanf(""));
  dequantize_mx(pool, scheme, result.packed.data(), result.scales.data(), result.pre_scale.data(), w.rows,
                w.cols, DType::float32, reinterpret_cast<std::byte*>(result.values.data()));
  return result;
}

TEST(
    "MX: block scales by floor, elements rounded as asked and saturated, zero blocks have byte and codes 0") {
  constexpr int kEmax[] = {8, 15, 4, 2, 2, 0};
  for_each_weight([&](const Weight& w) {
    for (int e = 0; e < 6; ++e)
      for (const MxRounding rounding : {MxRounding::even, MxRounding::nearest, MxRounding::floor}) {
        const MxScheme scheme{static_cast<MxElement>(e), rounding, false};
        on_every_machine([&](ThreadPool& pool) {
          const MxResult actual = run(pool, w, scheme);
          const int64_t blocks = (w.cols + 31) / 32;
          for (int64_t r = 0; r < w.rows; ++r)
            for (int64_t c = 0; c < w.cols; ++c) {
              double most = 0;
              for (int64_t j = c / 32 * 32; j < std::min(w.cols, c / 32 * 32 + 32); ++j)
                most = std::max(most, std::abs(static_cast<double>(w.at(r, j))));
              const int exponent = most == 0 ? -127 : std::max(std::ilogb(most) - kEmax[e], -127);
              CHECK_EQ(static_cast<int>(actual.scales[static_cast<size_t>(r * blocks + c / 32)]),
                       exponent + 127);
              const double x = std::ldexp(static_cast<double>(w.at(r, c)), -exponent);
              const double expected = std::ldexp(mx_value(scheme.element, rounding, x), exponent);
              CHECK_EQ(actual.values[static_cast<size_t>(r * w.cols + c)], static_cast<float>(expected));
            }
          check_sums(w, actual.values, actual.sums);
        });
      }
  });
}

TEST(
    "MX pre-scale: the best of its 32 factors by squared error, never worse than none, the same everywhere") {
  const Weight w = make_weight(40, 100, DType::bfloat16, true, 4);
  const MxScheme plain{MxElement::e2m1, MxRounding::even, false},
      scaled{MxElement::e2m1, MxRounding::even, true};
  ThreadPool pool(1);
  const MxResult without = run(pool, w, plain), first = run(pool, w, scaled);
  CHECK(first.sums.error < without.sums.error);
  for (const float factor : first.pre_scale) {
    const double i = -32 * std::log2(static_cast<double>(factor));
    CHECK(i > -1e-3 && i < 31.001 && std::abs(i - std::round(i)) < 1e-4);
  }
  check_sums(w, first.values, first.sums);
  on_every_machine([&](ThreadPool& p) {
    const MxResult again = run(p, w, scaled);
    CHECK(again.packed == first.packed && again.scales == first.scales && again.pre_scale == first.pre_scale);
    CHECK_EQ(again.sums.error, first.sums.error);
  });
}

TEST("every kind refuses NaN with its first position, and integer weights by their dtype") {
  Weight w = make_weight(90, 70, DType::float16, true);
  w.values[50 * 70 + 60] = std::nanf("");
  w.values[60 * 70 + 1] = std::nanf("");
  store_values(w);
  const auto names_position = [](const std::string& message) {
    return message.find("at row 50, column 60") != std::string::npos;
  };
  on_every_machine([&](ThreadPool& pool) {
    for (const bool nested : {false, true})
      CHECK(names_position(error_of([&] { run(pool, w, CodebookScheme{Codebook::nf4, 48, nested}); })));
    CHECK(names_position(error_of([&] { run(pool, w, CodebookScheme{Codebook::dynamic8, 70, false}); })));
    for (const bool pre_scale : {false, true})
      CHECK(names_position(
          error_of([&] { run(pool, w, MxScheme{MxElement::e2m1, MxRounding::even, pre_scale}); })));
    std::vector<uint8_t> packed(static_cast<size_t>(90 * packed_row_bytes(70, 8)));
    std::vector<float> scales(90);
    for (const bool per_row : {false, true})
      CHECK(names_position(error_of(
          [&] { quantize_fp8(pool, w.view(), {Float8::e4m3, per_row}, packed.data(), scales.data()); })));
    ConstMatrix integers = w.view();
    integers.dtype = DType::int16;
    CHECK_THROWS(Error, quantize_fp8(pool, integers, {}, packed.data(), scales.data()));
  });
}

TEST("dequantizing to 16 and 8 bits is the float32 result rounded once") {
  const Weight w = make_weight(12, 129, DType::float32, false);
  on_every_machine([&](ThreadPool& pool) {
    const CodebookScheme scheme{Codebook::nf4, 64, false};
    const BookResult result = run(pool, w, scheme);
    std::vector<uint16_t> brains(w.values.size()), halves(w.values.size());
    std::vector<uint8_t> bytes(w.values.size());
    const ConstCodebookStored stored{result.packed.data(), result.absmax.data(), nullptr, nullptr, nullptr};
    dequantize_codebook(pool, scheme, stored, 12, 129, DType::bfloat16,
                        reinterpret_cast<std::byte*>(brains.data()));
    dequantize_codebook(pool, scheme, stored, 12, 129, DType::float16,
                        reinterpret_cast<std::byte*>(halves.data()));
    dequantize_codebook(pool, scheme, stored, 12, 129, DType::float8_e4m3,
                        reinterpret_cast<std::byte*>(bytes.data()));
    for (size_t i = 0; i < brains.size(); ++i) {
      CHECK_EQ(brains[i], numerics::bfloat16_from_float(result.values[i]));
      CHECK_EQ(halves[i], numerics::half_from_float(result.values[i]));
      CHECK_EQ(bytes[i], numerics::e4m3_from_float(result.values[i]));
    }
  });
}

}  // namespace
