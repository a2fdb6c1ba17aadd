#include <utility>

#include "dequant_matmul_test.h"

using namespace quantaria;
using namespace quantaria::test;
using ops::Granularity;
using ops::Operand;

namespace {

QuantizedWeight integers(int bits, bool symmetric, int64_t group, int64_t out, int64_t in, const CodeAt& code,
                         bool exact) {
  ops::IntScheme scheme;
  scheme.bits = bits;
  scheme.symmetric = symmetric;
  scheme.granularity = group > 0 ? Granularity::group : Granularity::row;
  scheme.group_size = group;
  return int_weight(scheme, out, in, code, 5, exact);
}

std::vector<float> first_rows(const std::vector<float>& x, int64_t rows, int64_t columns) {
  return {x.begin(), x.begin() + rows * columns};
}

constexpr int64_t kMostRows = 33;

/// Any number of rows that fills a tile of them, ends inside one or is too few for one.
std::vector<int64_t> row_counts() {
  std::vector<int64_t> counts(17);
  std::iota(counts.begin(), counts.end(), int64_t{1});
  counts.insert(counts.end(), {31, 32, kMostRows});
  return counts;
}

}  // namespace

TEST(
    "int8 products of 1 to 17 and 31 to 33 rows are exact for codes of every width, wherever rows, columns "
    "and "
    "groups end") {
  ThreadPool pool(2);
  on_each_isa([&](Isa isa) {
    for (const auto& [out, in] : {std::pair{33, 100}, std::pair{16, 192}, std::pair{47, 70}})
      for (const int bits : {2, 3, 4, 5, 8})
        for (const bool symmetric : {true, false})
          for (const int64_t group : {32, 96, 0}) {
            const QuantizedWeight w = integers(bits, symmetric, group, out, in,
                                               random_codes(static_cast<uint32_t>(bits), bits), true);
            const std::vector<float> x = integer_activations(kMostRows, w, 3);
            std::vector<float> expected(static_cast<size_t>(kMostRows * out));
            for (int64_t i = 0; i < kMostRows; ++i)
              for (int64_t j = 0; j < out; ++j) {
                double sum = 0;
                for (int64_t c = 0; c < in; ++c) sum += double{x[w.at(i, c)]} * double{w.values[w.at(j, c)]};
                expected[static_cast<size_t>(i * out + j)] = static_cast<float>(sum);
              }
            for (const int64_t rows : row_counts())
              if (multiply(pool, w, first_rows(x, rows, in), Operand::int8) !=
                  first_rows(expected, rows, out))
                report(__FILE__, __LINE__,
                       std::string(quantaria::name_of(isa)) + " " + w.name + " x " + std::to_string(rows) +
                           " rows differs");
          }
  });
}

TEST(
    "int8 products of real activations lie within the bound for 5 to 17 rows, with the same bits on 1, 2 and "
    "3 "
    "threads") {
  ThreadPool one(1);
  ThreadPool two(2);
  ThreadPool three(3);
  on_each_isa([&](Isa isa) {
    for (const int bits : {4, 8})
      for (const bool symmetric : {true, false})
        for (const int64_t group : {32, 128, 0}) {
          const QuantizedWeight w = integers(bits, symmetric, group, 70, 300, random_codes(9, bits), false);
          for (const int64_t rows : {5, 8, 12, 15, 16, 17}) {
            const std::vector<float> x = random_activations(rows, w.in, 11);
            const std::vector<float> y = multiply(two, w, x, Operand::int8);
            check_product(w, x, Operand::int8, y, isa);
            CHECK(y == multiply(one, w, x, Operand::int8));
            CHECK(y == multiply(three, w, x, Operand::int8));
          }
        }
  });
}

TEST("int8 sums of the most columns that share a scale, all of the largest magnitude, do not overflow") {
  ThreadPool pool(2);
  const int64_t in = int64_t{1} << 15;
  on_each_isa([&](Isa isa) {
    for (const int code : {0, 1, 255}) {
      QuantizedWeight w = integers(8, true, 0, 17, in, [=](int64_t, int64_t) { return code; }, true);
      for (const float value : {127.0f, -127.0f})
        for (const int64_t rows : {1, 16}) {
          const std::vector<float> x(static_cast<size_t>(rows * in), value);
          const std::vector<float> y = multiply(pool, w, x, Operand::int8);
          for (size_t i = 0; i < y.size(); ++i) {
            const float expected =
                static_cast<float>(in) * value * w.values[(i % 17) * static_cast<size_t>(in)];
            if (y[i] != expected)
              report(__FILE__, __LINE__,
                     std::string(quantaria::name_of(isa)) + " code " + std::to_string(code) + " at " +
                         std::to_string(i) + ": " + show(y[i]) + ", expected " + show(expected));
          }
        }
    }
  });
}
