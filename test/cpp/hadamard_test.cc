#include "ops/hadamard/hadamard.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "numerics/bfloat16.h"
#include "numerics/half.h"
#include "ops/hadamard/base_orders.h"
#include "quantize_test.h"

namespace {

using namespace quantaria;
using namespace quantaria::ops;
using namespace quantaria::test;

std::vector<float> run(ThreadPool& pool, int64_t rows, int64_t n, float scale, const std::vector<float>& x) {
  std::vector<float> y(x.size(), std::nanf(""));
  hadamard(pool, DType::float32, rows, n, scale, reinterpret_cast<const std::byte*>(x.data()),
           reinterpret_cast<std::byte*>(y.data()));
  return y;
}

/// H_m (x) H_{2^k} by the definition of both factors' places.
int entry(const std::vector<int8_t>& base, int64_t m, int64_t n, int64_t i, int64_t j) {
  const int64_t size = n / m;
  const int sign = std::popcount(static_cast<uint64_t>(i % size & j % size)) % 2 == 0 ? 1 : -1;
  return sign * base[static_cast<size_t>(i / size * m + j / size)];
}

std::vector<float> random_values(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

// Each path: within a vector, in registers, one and more passes of eighths; base blocks under and over a
// vector.
constexpr int64_t kSizes[] = {1,  2,  4,  8,  16, 32, 64, 128, 256, 512, 1024, 4096, 12,  20,  24,   28,
                              36, 40, 44, 48, 52, 80, 92, 96,  100, 160, 192,  224,  320, 416, 1664, 1536};

TEST("every base matrix is one of +1 and -1 with orthogonal rows") {
  int64_t known = 0;
  for (int64_t m = 1; m <= kLargestBaseOrder; ++m) {
    if (base_order(m) != m) continue;
    ++known;
    const std::vector<int8_t> h = base_matrix(m);
    CHECK_EQ(static_cast<int64_t>(h.size()), m * m);
    CHECK(std::all_of(h.begin(), h.end(), [](int8_t x) { return x == 1 || x == -1; }));
    int64_t wrong = 0;
    for (int64_t i = 0; i < m; ++i)
      for (int64_t j = 0; j < m; ++j) {
        int64_t dot = 0;
        for (int64_t c = 0; c < m; ++c)
          dot += h[static_cast<size_t>(i * m + c)] * h[static_cast<size_t>(j * m + c)];
        wrong += dot != (i == j ? m : 0);
      }
    CHECK_EQ(wrong, 0);
  }
  // 1, and 4 * odd for odd 3 .. 63 but 39, 43, 47 and 59, and 40.
  CHECK_EQ(known, 1 + 31 - 4 + 1);
}

TEST("the transform of unit vectors is the matrix, entry for entry, on every ISA and thread count") {
  for (const int64_t n : kSizes) {
    if (n > 512) continue;
    const int64_t m = base_order(n);
    const std::vector<int8_t> base = base_matrix(m);
    std::vector<float> identity(static_cast<size_t>(n * n), 0.0f);
    for (int64_t i = 0; i < n; ++i) identity[static_cast<size_t>(i * n + i)] = 1.0f;
    on_every_machine([&](ThreadPool& pool) {
      const std::vector<float> y = run(pool, n, n, 0.5f, identity);
      int64_t wrong = 0;
      for (int64_t j = 0; j < n; ++j)
        for (int64_t i = 0; i < n; ++i)
          wrong += y[static_cast<size_t>(j * n + i)] != 0.5f * static_cast<float>(entry(base, m, n, i, j));
      CHECK_EQ(wrong, 0);
    });
  }
}

TEST("small integers transform exactly at every size") {
  for (const int64_t n : {int64_t{4096}, int64_t{1664}, int64_t{1536}, int64_t{14336}, int64_t{1} << 17}) {
    const int64_t m = base_order(n);
    const std::vector<int8_t> base = base_matrix(m);
    std::mt19937 random(7);
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = static_cast<float>(static_cast<int>(random() % 33) - 16);
    on_every_machine([&](ThreadPool& pool) {
      const std::vector<float> y = run(pool, 1, n, 1.0f, x);
      for (const int64_t i : {int64_t{0}, int64_t{1}, n / 2 - 1, n / 2, n / 3, n - 1}) {
        int64_t sum = 0;
        for (int64_t j = 0; j < n; ++j)
          sum += entry(base, m, n, i, j) * static_cast<int64_t>(x[static_cast<size_t>(j)]);
        CHECK_EQ(y[static_cast<size_t>(i)], static_cast<float>(sum));
      }
    });
  }
}

/// Additions one after the other on the way to an output: m in the base, one a stage; and the scale.
double error_bound(int64_t n, double sum_of_magnitudes) {
  const int64_t m = base_order(n);
  const double steps = static_cast<double>(m) + std::log2(static_cast<double>(n / m)) + 1;
  return steps * 0x1p-24 * sum_of_magnitudes;
}

TEST(
    "float32 stays within (additions) eps sum|x| of float64, with the same bits on every ISA and thread "
    "count") {
  constexpr int64_t kRows = 5;
  for (const int64_t n : kSizes) {
    const int64_t m = base_order(n);
    const std::vector<int8_t> base = base_matrix(m);
    const std::vector<float> x = random_values(kRows * n, 11);
    const auto scale = static_cast<float>(1 / std::sqrt(static_cast<double>(n)));
    std::vector<uint32_t> first;
    on_every_machine([&](ThreadPool& pool) {
      const std::vector<float> y = run(pool, kRows, n, scale, x);
      if (first.empty()) first = bits_of_all(y);
      CHECK(bits_of_all(y) == first);
      std::vector<float> in_place = x;
      hadamard(pool, DType::float32, kRows, n, scale, reinterpret_cast<const std::byte*>(in_place.data()),
               reinterpret_cast<std::byte*>(in_place.data()));
      CHECK(bits_of_all(in_place) == first);
    });
    std::vector<float> y(first.size());
    std::memcpy(y.data(), first.data(), first.size() * sizeof(float));
    double worst = 0;
    int64_t worst_at = 0;
    for (int64_t r = 0; r < kRows; ++r) {
      double magnitudes = 0;
      for (int64_t j = 0; j < n; ++j)
        magnitudes += std::abs(static_cast<double>(x[static_cast<size_t>(r * n + j)]));
      for (int64_t i = 0; i < n; ++i) {
        double sum = 0;
        for (int64_t j = 0; j < n; ++j)
          sum += entry(base, m, n, i, j) * static_cast<double>(x[static_cast<size_t>(r * n + j)]);
        const double error = std::abs(y[static_cast<size_t>(r * n + i)] - sum * scale);
        const double share = error / (error_bound(n, magnitudes) * scale);
        if (share > worst) worst = share, worst_at = r * n + i;
      }
    }
    if (worst > 1)
      report(__FILE__, __LINE__, "n " + show(n) + ": " + show(worst) + " of the bound at " + show(worst_at));
  }
}

TEST("16-bit rows are the float32 transform of their values, rounded once") {
  constexpr int64_t kRows = 12;
  for (const DType dtype : {DType::float16, DType::bfloat16})
    for (const int64_t n : kSizes) {
      const Weight w = make_weight(kRows, n, dtype, false, 3);
      on_every_machine([&](ThreadPool& pool) {
        const std::vector<float> wide = run(pool, kRows, n, 0.37f, w.values);
        std::vector<uint16_t> y(w.values.size(), 0xa5a5);
        hadamard(pool, dtype, kRows, n, 0.37f, w.view().data, reinterpret_cast<std::byte*>(y.data()));
        int64_t wrong = 0;
        for (size_t i = 0; i < y.size(); ++i)
          wrong += y[i] != (dtype == DType::float16 ? numerics::half_from_float(wide[i])
                                                    : numerics::bfloat16_from_float(wide[i]));
        CHECK_EQ(wrong, 0);
      });
    }
}

TEST("NaN and infinity fill their own row and no other") {
  for (const int64_t n : {int64_t{8}, int64_t{24}, int64_t{64}, int64_t{96}, int64_t{1024}, int64_t{1664}})
    on_every_machine([&](ThreadPool& pool) {
      std::vector<float> x = random_values(3 * n, 5);
      const std::vector<float> clean = run(pool, 3, n, 1.0f, x);
      x[static_cast<size_t>(n / 2)] = std::nanf("");
      x[static_cast<size_t>(2 * n + n - 1)] = std::numeric_limits<float>::infinity();
      const std::vector<float> y = run(pool, 3, n, 1.0f, x);
      const auto begin = y.begin();
      CHECK(std::all_of(begin, begin + n, [](float v) { return std::isnan(v); }));
      CHECK(std::equal(begin + n, begin + 2 * n, clean.begin() + n));
      CHECK(std::all_of(begin + 2 * n, y.end(), [](float v) { return std::isinf(v); }));
    });
}

TEST("sizes without a matrix are refused, with the nearest that have one") {
  const auto message = [](int64_t n) -> std::string {
    try {
      check_hadamard_size(n);
    } catch (const Error& error) {
      CHECK(error.code() == ErrorCode::shape);
      return error.what();
    }
    return "";
  };
  for (const int64_t n : kSizes) CHECK_EQ(message(n), "");
  CHECK_EQ(message(0), "");
  for (const int64_t n : {3, 6, 18, 156, 172, 260, 1000000007}) {
    int64_t below = n, above = n;
    while (base_order(below) == 0) --below;
    while (base_order(above) == 0) ++above;
    CHECK(message(n).find("is " + show(n) + ",") != std::string::npos);
    CHECK(message(n).find("are " + show(below) + " and " + show(above)) != std::string::npos);
  }
  CHECK(message((int64_t{1} << 52) + 1).find(show(int64_t{1} << 52)) != std::string::npos);
}

TEST("a matrix without rows or columns is left alone, and integers are refused") {
  ThreadPool pool(2);
  hadamard(pool, DType::float32, 0, 64, 1.0f, nullptr, nullptr);
  hadamard(pool, DType::float32, 5, 0, 1.0f, nullptr, nullptr);
  bool refused = false;
  try {
    hadamard(pool, DType::int8, 1, 64, 1.0f, nullptr, nullptr);
  } catch (const Error& error) {
    refused = error.code() == ErrorCode::dtype;
  }
  CHECK(refused);
}

}  // namespace
