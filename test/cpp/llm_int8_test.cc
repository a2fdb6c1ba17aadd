#include "ops/llm_int8/llm_int8.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "check.h"
#include "quantize_test.h"

namespace quantaria::test {
namespace {

using Floats = std::vector<float>;

struct Result {
  std::vector<uint8_t> mask;
  std::vector<int64_t> columns;
  Floats absmax;
  std::vector<int8_t> codes;
  std::vector<uint8_t> outliers;
};

/// Rows of codes lie `kGap` bytes apart, which must stay as they are.
constexpr int64_t kGap = 3;
constexpr int8_t kPoison = 99;

Result run(ThreadPool& pool, const Weight& x, float threshold) {
  const auto rows = static_cast<size_t>(x.rows);
  const auto row_bytes = static_cast<size_t>(x.cols + kGap);
  Result result{std::vector<uint8_t>(static_cast<size_t>(x.cols), 0xee),
                {},
                Floats(rows, 1e30f),
                std::vector<int8_t>(rows * row_bytes, kPoison),
                {}};
  ops::outlier_mask(pool, x.view(), threshold, result.mask.data());
  result.columns = ops::outlier_columns(result.mask.data(), x.cols);
  ops::quantize_activations(pool, x.view(), threshold, result.mask.data(), result.absmax.data(),
                            result.codes.data(), x.cols + kGap);
  result.outliers.assign(rows * result.columns.size() * static_cast<size_t>(size_of(x.dtype)), 0xee);
  ops::gather_columns(pool, x.view(), result.columns, reinterpret_cast<std::byte*>(result.outliers.data()));
  return result;
}

/// The rules, one value at a time.
Result reference(const Weight& x, float threshold) {
  Result result;
  const auto large = [&](float value) { return threshold > 0 && std::abs(value) >= threshold; };
  for (int64_t c = 0; c < x.cols; ++c) {
    bool found = false;
    for (int64_t r = 0; r < x.rows; ++r) found |= large(x.at(r, c));
    result.mask.push_back(found ? 1 : 0);
    if (found) result.columns.push_back(c);
  }
  const auto bytes = static_cast<size_t>(size_of(x.dtype));
  for (int64_t r = 0; r < x.rows; ++r) {
    float most = 0;
    for (int64_t c = 0; c < x.cols; ++c) {
      const float value = std::abs(x.at(r, c));
      if (std::isnan(value) || (!large(value) && value > most)) most = std::isnan(most) ? most : value;
    }
    result.absmax.push_back(most);
    for (int64_t c = 0; c < x.cols; ++c) {
      const float scaled = x.at(r, c) * (127.0f / most);
      const bool none =
          result.mask[static_cast<size_t>(c)] != 0 || most == 0 || !std::isfinite(most) || std::isnan(scaled);
      result.codes.push_back(none ? int8_t{0}
                                  : static_cast<int8_t>(std::clamp(std::nearbyint(scaled), -127.0f, 127.0f)));
    }
    result.codes.insert(result.codes.end(), kGap, kPoison);
    for (const int64_t c : result.columns) {
      const auto at = static_cast<size_t>(x.transposed ? c * x.rows + r : r * x.cols + c) * bytes;
      result.outliers.insert(result.outliers.end(), &x.stored[at], &x.stored[at] + bytes);
    }
  }
  return result;
}

void check_rules(const Weight& x, float threshold) {
  const Result expected = reference(x, threshold);
  on_every_machine([&](ThreadPool& pool) {
    const Result got = run(pool, x, threshold);
    CHECK_EQ(got.mask, expected.mask);
    CHECK_EQ(got.columns, expected.columns);
    CHECK(bits_of_all(got.absmax) == bits_of_all(expected.absmax));
    CHECK_EQ(got.codes, expected.codes);
    CHECK_EQ(got.outliers, expected.outliers);
  });
}

}  // namespace

TEST("llm.int8 activations: the rules, exactly, on every instruction set, thread count and layout") {
  for_each_weight([](const Weight& x) {
    for (const float threshold : {0.0f, 0.12f, 6.0f, 1e-40f}) check_rules(x, threshold);
  });
}

TEST("llm.int8 activations: NaN, infinities, denormals and values at the threshold") {
  constexpr float inf = std::numeric_limits<float>::infinity();
  constexpr float nan = std::numeric_limits<float>::quiet_NaN();
  for (const int64_t cols : {1, 15, 16, 17, 33, 70}) {
    for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
      Weight x = make_weight(20, cols, dtype, false, 5);
      const float special[] = {nan, inf, -inf, 6.0f, std::nextafter(6.0f, 0.0f), 1e-45f, 3e38f, -6.0f};
      for (int64_t r = 0; r < 16; ++r)
        x.values[static_cast<size_t>(r * cols + (r * 5) % cols)] = special[r % 8];
      store_values(x);
      for (const float threshold : {0.0f, 6.0f, inf}) check_rules(x, threshold);
    }
  }
}

}  // namespace quantaria::test
