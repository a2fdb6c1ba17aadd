#include "ops/gemm/gemm.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "numerics/bfloat16.h"
#include "ops/gemm/dense_factor.h"

using namespace quantaria;

namespace {

struct Values {
  std::vector<float> floats;
  int64_t rows, cols;

  ConstMatrix view() const {
    return {reinterpret_cast<const std::byte*>(floats.data()), DType::float32, rows, cols, cols, 1};
  }
  /// The same matrix laid out column by column.
  std::vector<float> columns_first() const {
    std::vector<float> other(floats.size());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < cols; ++c)
        other[static_cast<size_t>(c * rows + r)] = floats[static_cast<size_t>(r * cols + c)];
    return other;
  }
};

Values random_values(int64_t rows, int64_t cols, uint32_t seed, bool integers = false) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> real(-1, 1);
  std::uniform_int_distribution<int> whole(-8, 8);
  Values v{std::vector<float>(static_cast<size_t>(rows * cols)), rows, cols};
  for (float& x : v.floats) x = integers ? static_cast<float>(whole(random)) : real(random);
  return v;
}

ConstMatrix columns_first_view(const std::vector<float>& data, int64_t rows, int64_t cols) {
  return {reinterpret_cast<const std::byte*>(data.data()), DType::float32, rows, cols, 1, rows};
}

template <class Body>
void on_each_isa(Body&& body) {
  const Isa before = selected_isa();
  for (const Isa isa : kIsas) {
    if (isa > detected_isa()) break;
    select_isa(isa);
    body(isa);
  }
  select_isa(before);
}

std::vector<float> product(ThreadPool& pool, const ConstMatrix& a, const ConstMatrix& b,
                           const ops::GemmOptions& options = {}, float poison = NAN) {
  std::vector<float> c(static_cast<size_t>(a.rows * b.cols), poison);
  ops::gemm(pool, a, b, {reinterpret_cast<std::byte*>(c.data()), DType::float32, a.rows, b.cols, b.cols, 1},
            options);
  return c;
}

struct Shape3 {
  int64_t m, n, k;
};
const Shape3 kShapes[] = {{1, 1, 1},    {2, 33, 5},    {3, 16, 64},  {5, 7, 0},
                          {0, 9, 4},    {11, 31, 17},  {12, 32, 32}, {13, 65, 127},
                          {17, 48, 63}, {127, 129, 3}, {253, 40, 9}, {300, 33, 70}};

}  // namespace

TEST("a product of small integers is exact on every instruction set, whatever the layout of its factors") {
  ThreadPool pool(2);
  on_each_isa([&](Isa) {
    for (const auto [m, n, k] : kShapes) {
      const Values a = random_values(m, k, 1, true);
      const Values b = random_values(k, n, 2, true);
      std::vector<float> expected(static_cast<size_t>(m * n), 0.0f);
      for (int64_t i = 0; i < m; ++i)
        for (int64_t l = 0; l < k; ++l)
          for (int64_t j = 0; j < n; ++j)
            expected[static_cast<size_t>(i * n + j)] +=
                a.floats[static_cast<size_t>(i * k + l)] * b.floats[static_cast<size_t>(l * n + j)];
      const std::vector<float> at = a.columns_first();
      const std::vector<float> bt = b.columns_first();
      CHECK(product(pool, a.view(), b.view()) == expected);
      CHECK(product(pool, columns_first_view(at, m, k), columns_first_view(bt, k, n)) == expected);
    }
  });
}

TEST("a product lies within the rounding bound of float64 and has the same bits for any number of threads") {
  on_each_isa([&](Isa isa) {
    for (const auto [m, n, k] : {Shape3{13, 50, 5000}, Shape3{40, 33, 300}}) {
      const Values a = random_values(m, k, 3);
      const Values b = random_values(k, n, 4);
      ThreadPool one(1);
      ThreadPool three(3);
      const std::vector<float> c = product(three, a.view(), b.view());
      CHECK(c == product(one, a.view(), b.view()));
      double worst = 0;
      for (int64_t i = 0; i < m; ++i)
        for (int64_t j = 0; j < n; ++j) {
          double sum = 0;
          double magnitude = 0;
          for (int64_t l = 0; l < k; ++l) {
            const double term = double{a.floats[static_cast<size_t>(i * k + l)]} *
                                double{b.floats[static_cast<size_t>(l * n + j)]};
            sum += term;
            magnitude += std::fabs(term);
          }
          const double error = std::fabs(double{c[static_cast<size_t>(i * n + j)]} - sum);
          worst = std::max(worst, error / (std::sqrt(static_cast<double>(k)) * magnitude * 0x1p-24));
        }
      if (worst > 1) std::cerr << name_of(isa) << ": " << worst << " times the bound\n";
      CHECK(worst <= 1);
    }
  });
}

TEST("alpha scales, accumulation adds, and the upper part leaves whole tiles below the diagonal alone") {
  ThreadPool pool(2);
  on_each_isa([&](Isa) {
    const Values a = random_values(300, 40, 5, true);
    const std::vector<float> at = a.columns_first();
    const ConstMatrix transposed{
        reinterpret_cast<const std::byte*>(a.floats.data()), DType::float32, 40, 300, 1, 40};
    const std::vector<float> full = product(pool, a.view(), transposed);
    std::vector<float> doubled = product(pool, a.view(), transposed, {true, 2, ops::Part::all}, 1.0f);
    for (size_t i = 0; i < full.size(); ++i) CHECK_EQ(doubled[i], 1 + 2 * full[i]);
    const std::vector<float> upper = product(pool, a.view(), transposed, {false, 1, ops::Part::upper}, -1e9f);
    int64_t untouched = 0;
    for (int64_t i = 0; i < 300; ++i)
      for (int64_t j = 0; j < 300; ++j) {
        const float x = upper[static_cast<size_t>(i * 300 + j)];
        if (j >= i) CHECK_EQ(x, full[static_cast<size_t>(i * 300 + j)]);
        untouched += x == -1e9f;
      }
    CHECK(untouched > 300 * 300 / 3);
  });
}

TEST("bfloat16 products are those of factors rounded to bfloat16") {
  ThreadPool pool(2);
  on_each_isa([&](Isa) {
    const Values a = random_values(9, 77, 6);
    const Values b = random_values(77, 35, 7);
    const ops::DenseFactor factor(b.view(), true);
    std::vector<float> c(9 * 35, NAN);
    ops::Product job;
    job.rows = {a.view(), nullptr, 9};
    job.factors[0] = &factor;
    job.store = [&](const ops::Piece& piece) {
      for (int64_t r = 0; r < piece.rows; ++r)
        std::memcpy(c.data() + (piece.row + r) * 35 + piece.column, piece.c[0] + r * piece.stride,
                    static_cast<size_t>(piece.columns) * 4);
    };
    ops::multiply_all(pool, {job});
    const auto rounded = [](float x) {
      return double{numerics::float_from_bfloat16(numerics::bfloat16_from_float(x))};
    };
    for (int64_t i = 0; i < 9; ++i)
      for (int64_t j = 0; j < 35; ++j) {
        double sum = 0;
        double magnitude = 0;
        for (int64_t l = 0; l < 77; ++l) {
          const double term = rounded(a.floats[static_cast<size_t>(i * 77 + l)]) *
                              rounded(b.floats[static_cast<size_t>(l * 35 + j)]);
          sum += term;
          magnitude += std::fabs(term);
        }
        CHECK(std::fabs(double{c[static_cast<size_t>(i * 35 + j)]} - sum) <=
              std::sqrt(77.0) * 0x1p-23 * magnitude);
      }
  });
}

TEST("NaN and infinities of a factor reach the sums they belong to and no other") {
  ThreadPool pool(1);
  on_each_isa([&](Isa) {
    Values a = random_values(14, 20, 8);
    const Values b = random_values(20, 34, 9);
    a.floats[3 * 20 + 4] = NAN;
    a.floats[13 * 20 + 19] = std::numeric_limits<float>::infinity();
    const std::vector<float> c = product(pool, a.view(), b.view());
    for (int64_t i = 0; i < 14; ++i)
      for (int64_t j = 0; j < 34; ++j) {
        const float x = c[static_cast<size_t>(i * 34 + j)];
        CHECK_EQ(std::isnan(x), i == 3);
        CHECK_EQ(std::isinf(x), i == 13);
      }
  });
}
