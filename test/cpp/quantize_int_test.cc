#include <algorithm>
#include <cstring>
#include <limits>

#include "quantize_test.h"

namespace {

using namespace quantaria;
using namespace quantaria::ops;
using namespace quantaria::test;

struct Result {
  std::vector<uint8_t> packed;
  std::vector<float> scales;
  std::vector<int32_t> zeros;
  std::vector<float> values;
  ErrorSums sums;
};

Result run(ThreadPool& pool, const Weight& w, const IntScheme& scheme) {
  const ConstantsShape shape = constants_shape(scheme, w.rows, w.cols);
  const auto constants = static_cast<size_t>(shape.rows * shape.cols);
  Result result;
  result.packed.assign(static_cast<size_t>(w.rows * packed_row_bytes(w.cols, scheme.bits)), 0xa5);
  result.scales.assign(constants, std::nanf(""));
  result.zeros.assign(scheme.symmetric ? 0 : constants, -99);
  int32_t* const zeros = scheme.symmetric ? nullptr : result.zeros.data();
  quantize_int(pool, w.view(), scheme, {result.packed.data(), result.scales.data(), zeros}, &result.sums);
  result.values.assign(w.values.size(), std::nanf(""));
  dequantize_int(pool, scheme, {result.packed.data(), result.scales.data(), zeros}, w.rows, w.cols,
                 DType::float32, reinterpret_cast<std::byte*>(result.values.data()));
  return result;
}

/// The group of an element, as an index into the constants.
int64_t group_of(const IntScheme& scheme, int64_t cols, int64_t r, int64_t c) {
  switch (scheme.granularity) {
    case Granularity::tensor:
      return 0;
    case Granularity::row:
      return r;
    case Granularity::column:
      return c;
    default:
      return r * ((cols + scheme.group_size - 1) / scheme.group_size) + c / scheme.group_size;
  }
}

/// The contract, element by element in float32.
Result by_definition(const Weight& w, const IntScheme& scheme) {
  const ConstantsShape shape = constants_shape(scheme, w.rows, w.cols);
  const auto groups = static_cast<size_t>(shape.rows * shape.cols);
  std::vector<float> low(groups, 0.0f), high(groups, 0.0f);
  for (int64_t r = 0; r < w.rows; ++r)
    for (int64_t c = 0; c < w.cols; ++c) {
      const auto g = static_cast<size_t>(group_of(scheme, w.cols, r, c));
      low[g] = std::min(low[g], w.at(r, c));
      high[g] = std::max(high[g], w.at(r, c));
    }
  Result result;
  const float steps = static_cast<float>((1 << scheme.bits) - 1);
  const int32_t half = 1 << (scheme.bits - 1);
  for (size_t g = 0; g < groups; ++g) {
    const float absmax = std::max(-low[g], high[g]);
    const bool zeros = absmax == 0;
    float scale = 0;
    if (scheme.symmetric)
      scale = zeros ? 1.0f : scheme.full_range ? 2 * absmax / steps : absmax / static_cast<float>(half - 1);
    else
      scale = zeros ? 2.0f / steps : (high[g] - low[g]) / steps;
    if (scheme.scale_dtype == DType::float16)
      scale = std::clamp(numerics::float_from_half(numerics::half_from_float(scale)), 0x1p-24f, 65504.0f);
    if (scheme.scale_dtype == DType::bfloat16)
      scale = std::max(numerics::float_from_bfloat16(numerics::bfloat16_from_float(scale)), 0x1p-133f);
    scale = std::max(scale, std::numeric_limits<float>::denorm_min());
    result.scales.push_back(scale);
    const float lowest = zeros ? -1.0f : low[g];
    if (!scheme.symmetric)
      result.zeros.push_back(static_cast<int32_t>(std::min(std::nearbyint(-lowest / scale), steps)));
  }
  std::vector<int32_t> codes;
  for (int64_t r = 0; r < w.rows; ++r)
    for (int64_t c = 0; c < w.cols; ++c) {
      const auto g = static_cast<size_t>(group_of(scheme, w.cols, r, c));
      const float rounded = std::nearbyint(w.at(r, c) / result.scales[g]);
      const float zero = scheme.symmetric ? 0.0f : static_cast<float>(result.zeros[g]);
      const float least = scheme.symmetric ? static_cast<float>(scheme.full_range ? -half : 1 - half) : 0.0f;
      const float most = scheme.symmetric ? static_cast<float>(half - 1) : steps;
      const float code = std::clamp(rounded + zero, least, most);
      codes.push_back(static_cast<int32_t>(code) + (scheme.symmetric ? half : 0));
      result.values.push_back((code - zero) * result.scales[g]);
      const double lost = static_cast<double>(w.at(r, c)) - result.values.back();
      result.sums.error += lost * lost;
      result.sums.weight += static_cast<double>(w.at(r, c)) * w.at(r, c);
    }
  result.packed.assign(static_cast<size_t>(w.rows * packed_row_bytes(w.cols, scheme.bits)), 0);
  ThreadPool pool(1);
  pack_bits(pool, {reinterpret_cast<const std::byte*>(codes.data()), DType::int32, w.rows, w.cols, w.cols, 1},
            scheme.bits, 0, result.packed.data());
  return result;
}

void check_scheme(const Weight& w, const IntScheme& scheme) {
  const Result expected = by_definition(w, scheme);
  bool first = true;
  ErrorSums sums;
  on_every_machine([&](ThreadPool& pool) {
    const Result actual = run(pool, w, scheme);
    CHECK(actual.packed == expected.packed);
    CHECK(bits_of_all(actual.scales) == bits_of_all(expected.scales));
    CHECK(actual.zeros == expected.zeros);
    CHECK(actual.values == expected.values);
    if (first) sums = actual.sums, first = false;
    CHECK_EQ(actual.sums.error, sums.error);
    CHECK_EQ(actual.sums.weight, sums.weight);
    CHECK(sums_close(actual.sums.error, expected.sums.error));
    CHECK(sums_close(actual.sums.weight, expected.sums.weight));
  });
}

TEST("integer grids equal the contract bit for bit on every ISA and thread count") {
  for_each_weight([](const Weight& w) {
    for (const int bits : {2, 3, 4, 5, 8, 16})
      for (const bool symmetric : {true, false}) {
        check_scheme(w, {.bits = bits, .symmetric = symmetric, .group_size = 32});
        check_scheme(w, {.bits = bits, .symmetric = symmetric, .full_range = true, .group_size = 50});
      }
    for (const Granularity granularity : {Granularity::tensor, Granularity::row, Granularity::column})
      for (const int bits : {4, 16})
        for (const bool symmetric : {true, false})
          check_scheme(w, {.bits = bits, .symmetric = symmetric, .granularity = granularity});
  });
}

TEST(
    "scales are rounded to their dtype first and the codes follow, down to the smallest and up to the "
    "largest") {
  for (const DType scale_dtype : {DType::float16, DType::bfloat16})
    for (const bool symmetric : {true, false})
      for (const float factor : {1.0f, 1e-9f, 1e7f}) {
        Weight w = make_weight(12, 100, DType::float32, false);
        for (float& x : w.values) x *= factor;
        store_values(w);
        check_scheme(w, {.bits = 8, .symmetric = symmetric, .group_size = 32, .scale_dtype = scale_dtype});
      }
}

TEST("a range wider than float32 still has a finite scale") {
  constexpr float kMax = 0.9f * std::numeric_limits<float>::max();
  Weight w{1, 4, {kMax, -kMax, 0.0f, kMax / 2}, DType::float32, false, {}};
  store_values(w);
  ThreadPool pool(1);
  for (const bool symmetric : {true, false}) {
    const Result result =
        run(pool, w, {.bits = 8, .symmetric = symmetric, .full_range = true, .group_size = 4});
    for (size_t i = 0; i < 4; ++i) CHECK(std::abs(result.values[i] - w.values[i]) <= result.scales[0]);
  }
}

/// sum |error|^2.4 of a group in double, over one shrink factor's grid.
double shrunk_error(const Weight& w, int bits, float low, float high, int k) {
  const auto factor = static_cast<float>(1.0 - k / 100.0);
  const float scale = (factor * high - factor * low) / static_cast<float>((1 << bits) - 1);
  const float zero = std::nearbyint(-(factor * low) / scale);
  double sum = 0;
  for (const float x : w.values) {
    const float code =
        std::clamp(std::nearbyint(x / scale) + zero, 0.0f, static_cast<float>((1 << bits) - 1));
    sum += std::pow(std::abs(static_cast<double>(x) - (code - zero) * scale), 2.4);
  }
  return sum;
}

TEST("the shrink search finds an error within 1e-5 of the least, in every granularity alike") {
  Weight w = make_weight(1, 300, DType::float32, false, 5);
  std::mt19937 random(3);
  std::student_t_distribution<float> heavy(3);
  for (float& x : w.values) x = heavy(random);
  store_values(w);
  const float low = *std::min_element(w.values.begin(), w.values.end());
  const float high = *std::max_element(w.values.begin(), w.values.end());
  double least = std::numeric_limits<double>::infinity();
  for (int k = 0; k < 80; ++k) least = std::min(least, shrunk_error(w, 3, low, high, k));
  std::vector<float> first;
  on_every_machine([&](ThreadPool& pool) {
    for (const Granularity granularity : {Granularity::row, Granularity::tensor}) {
      const Result result =
          run(pool, w, {.bits = 3, .symmetric = false, .mse_search = true, .granularity = granularity});
      double error = 0;
      for (size_t i = 0; i < w.values.size(); ++i)
        error += std::pow(std::abs(static_cast<double>(w.values[i]) - result.values[i]), 2.4);
      CHECK(error <= least * (1 + 1e-5));
      if (first.empty()) first = result.scales;
      CHECK(result.scales == first);
    }
    Weight column = w;
    std::swap(column.rows, column.cols);
    CHECK(run(pool, column,
              {.bits = 3, .symmetric = false, .mse_search = true, .granularity = Granularity::column})
              .scales == first);
  });
}

TEST("NaN and infinity are refused with the first position in row-major order, whatever the scheme") {
  for (const bool transposed : {false, true})
    for (const Granularity granularity :
         {Granularity::tensor, Granularity::row, Granularity::column, Granularity::group})
      for (const bool symmetric : {true, false}) {
        Weight w = make_weight(150, 200, DType::bfloat16, transposed);
        w.values[100 * 200 + 3] = std::nanf("");
        w.values[70 * 200 + 190] = -std::numeric_limits<float>::infinity();
        w.values[149 * 200] = std::numeric_limits<float>::infinity();
        store_values(w);
        on_every_machine([&](ThreadPool& pool) {
          const std::string message = error_of(
              [&] { run(pool, w, {.symmetric = symmetric, .granularity = granularity, .group_size = 64}); });
          CHECK(message.find("-inf at row 70, column 190") != std::string::npos);
        });
      }
}

TEST("a group index picks each column's constants and is checked") {
  ThreadPool pool(2);
  const Weight w = make_weight(12, 64, DType::float32, false);
  const IntScheme scheme{.bits = 4, .group_size = 32};
  const Result result = run(pool, w, scheme);
  std::vector<int32_t> index(64);
  for (size_t c = 0; c < 64; ++c) index[c] = c % 2;
  std::vector<float> values(w.values.size()), plain = result.values;
  dequantize_int(pool, scheme, {result.packed.data(), result.scales.data(), nullptr, index.data()}, 12, 64,
                 DType::float32, reinterpret_cast<std::byte*>(values.data()));
  for (size_t i = 0; i < values.size(); ++i) {
    const size_t r = i / 64, c = i % 64;
    const float code = plain[i] / result.scales[2 * r + c / 32];
    CHECK_EQ(values[i], std::nearbyint(code) * result.scales[2 * r + c % 2]);
  }
  index[5] = 2;
  CHECK(error_of([&] {
          dequantize_int(pool, scheme, {result.packed.data(), result.scales.data(), nullptr, index.data()},
                         12, 64, DType::float32, reinterpret_cast<std::byte*>(values.data()));
        }).find("column 5") != std::string::npos);
}

TEST("LLM.int8: float16 weights, row absmax, codes by w * (127 / absmax)") {
  for_each_weight([](const Weight& w) {
    std::vector<uint8_t> expected(static_cast<size_t>(w.rows * packed_row_bytes(w.cols, 8)));
    std::vector<float> absmax(static_cast<size_t>(w.rows));
    for (int64_t r = 0; r < w.rows; ++r) {
      const auto half = [&](int64_t c) {
        return numerics::float_from_half(numerics::half_from_float(w.at(r, c)));
      };
      float& most = absmax[static_cast<size_t>(r)];
      for (int64_t c = 0; c < w.cols; ++c) most = std::max(most, std::abs(half(c)));
      for (int64_t c = 0; c < w.cols; ++c) {
        const float code = most == 0 ? 0 : std::nearbyint(half(c) * (127.0f / most));
        expected[static_cast<size_t>(r * packed_row_bytes(w.cols, 8) + c)] = static_cast<uint8_t>(code + 128);
      }
    }
    on_every_machine([&](ThreadPool& pool) {
      std::vector<uint8_t> packed(expected.size(), 0xa5);
      std::vector<float> scales(absmax.size(), -1.0f);
      quantize_llm_int8(pool, w.view(), packed.data(), scales.data());
      CHECK(packed == expected);
      CHECK(scales == absmax);
    });
  });
  Weight large = make_weight(11, 40, DType::bfloat16, false);
  large.values[10 * 40 + 7] = 70000.0f;
  store_values(large);
  ThreadPool pool(1);
  std::vector<uint8_t> packed(11 * 40);
  std::vector<float> scales(11);
  CHECK(error_of([&] {
          quantize_llm_int8(pool, large.view(), packed.data(), scales.data());
        }).find("row 10, column 7") != std::string::npos);
}

}  // namespace
