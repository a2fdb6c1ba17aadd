#include "ops/gemm/dots.h"

#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "dequant_matmul_test.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"
#include "ops/gemm/dense_factor.h"

using namespace quantaria;
using namespace quantaria::test;

namespace {

/// Contiguous columns, or rows, with a gap behind each that holds NaN, which must not get into any sum.
struct Columns {
  int64_t depth, count, stride;
  DType dtype;
  bool by_rows = false;
  std::vector<float> values;  // [count][depth]
  std::vector<std::byte> bytes;

  Columns(DType type, int64_t k, int64_t n, bool integers, uint32_t seed)
      : depth(k), count(n), stride(k + 3), dtype(type) {
    std::mt19937 random(seed);
    std::uniform_int_distribution<int> whole(-8, 8);
    std::uniform_real_distribution<float> real(-1, 1);
    bytes.resize(static_cast<size_t>(count * stride * size_of(dtype)));
    for (int64_t c = 0; c < count; ++c)
      for (int64_t i = 0; i < stride; ++i) {
        const float value = i >= depth ? NAN : integers ? static_cast<float>(whole(random)) : real(random);
        const float stored = put(c * stride + i, value);
        if (i < depth) values.push_back(stored);
      }
  }
  /// The same values with contiguous rows.
  Columns turned() const {
    Columns other = *this;
    other.by_rows = true;
    other.stride = count + 3;
    other.bytes.assign(static_cast<size_t>(depth * other.stride * size_of(dtype)), std::byte{0xff});
    for (int64_t k = 0; k < depth; ++k)
      for (int64_t c = 0; c < count; ++c) other.put(k * other.stride + c, at(k, c));
    return other;
  }
  ConstMatrix view() const {
    return {bytes.data(), dtype, depth, count, by_rows ? stride : 1, by_rows ? 1 : stride};
  }
  void set(int64_t k, int64_t column, float value) {
    values[static_cast<size_t>(column * depth + k)] =
        put(by_rows ? k * stride + column : column * stride + k, value);
  }
  float at(int64_t k, int64_t column) const { return values[static_cast<size_t>(column * depth + k)]; }

 private:
  /// Stores a value; returns what it became.
  float put(int64_t at, float value) {
    std::byte* const to = bytes.data() + at * size_of(dtype);
    if (dtype == DType::float32) {
      std::memcpy(to, &value, 4);
      return value;
    }
    const bool half = dtype == DType::float16;
    const uint16_t bits = half ? numerics::half_from_float(value) : numerics::bfloat16_from_float(value);
    std::memcpy(to, &bits, 2);
    return half ? numerics::float_from_half(bits) : numerics::float_from_bfloat16(bits);
  }
};

std::vector<float> product(ThreadPool& pool, const std::vector<float>& x, int64_t rows, const Columns& b,
                           bool bfloat16) {
  const ops::DenseFactor factor(b.view(), bfloat16);
  std::vector<float> c(static_cast<size_t>(rows * b.count), -1234.5f);
  ops::Product job;
  job.rows = {{reinterpret_cast<const std::byte*>(x.data()), DType::float32, rows, b.depth, b.depth, 1},
              nullptr,
              rows};
  job.factors[0] = &factor;
  job.store = [&](const ops::Piece& piece) {
    for (int64_t r = 0; r < piece.rows; ++r)
      std::memcpy(c.data() + (piece.row + r) * b.count + piece.column, piece.c[0] + r * piece.stride,
                  static_cast<size_t>(piece.columns) * 4);
  };
  ops::multiply_all(pool, {job});
  return c;
}

constexpr DType kColumnTypes[] = {DType::float32, DType::float16, DType::bfloat16};

}  // namespace

TEST(
    "few rows times contiguous columns of any dtype are exact for small integers, wherever rows and columns "
    "end") {
  ThreadPool pool(2);
  on_each_isa([&](Isa isa) {
    for (const DType dtype : kColumnTypes)
      for (const bool bfloat16 : {false, true})
        for (const int64_t depth : {0, 1, 15, 16, 17, 31, 32, 33, 77, 300})
          for (const int64_t count : {1, 3, 4, 5, 32, 35, 70})
            for (const int64_t rows : {1, 2, 3, 4, 5}) {
              const Columns b(dtype, depth, count, true, 2);
              std::mt19937 random(1);
              std::uniform_int_distribution<int> whole(-8, 8);
              std::vector<float> x(static_cast<size_t>(rows * depth));
              for (float& value : x) value = static_cast<float>(whole(random));
              const std::vector<float> c = product(pool, x, rows, b, bfloat16);
              size_t wrong = 0;
              for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < count; ++j) {
                  float sum = 0;
                  for (int64_t k = 0; k < depth; ++k)
                    sum += x[static_cast<size_t>(i * depth + k)] * b.at(k, j);
                  wrong += c[static_cast<size_t>(i * count + j)] != sum;
                }
              if (product(pool, x, rows, b.turned(), bfloat16) != c) ++wrong;
              if (wrong > 0)
                report(__FILE__, __LINE__,
                       std::string(quantaria::name_of(isa)) + " dtype " +
                           std::string(quantaria::name_of(dtype)) + (bfloat16 ? " by bfloat16: " : ": ") +
                           std::to_string(rows) + " x " + std::to_string(depth) + " x " +
                           std::to_string(count) + ": " + std::to_string(wrong) + " wrong");
            }
  });
}

TEST(
    "few rows times contiguous columns lie within the bound of float64, with the same bits on 1, 2 and 3 "
    "threads") {
  ThreadPool one(1);
  ThreadPool two(2);
  ThreadPool three(3);
  on_each_isa([&](Isa isa) {
    for (const DType dtype : kColumnTypes)
      for (const bool bfloat16 : {false, true})
        for (const int64_t rows : {1, 2, 3, 4}) {
          const int64_t depth = 2100;
          const Columns b(dtype, depth, 67, false, 3);
          const std::vector<float> x = random_activations(rows, depth, 4);
          const std::vector<float> c = product(two, x, rows, b, bfloat16);
          CHECK(c == product(one, x, rows, b, bfloat16));
          CHECK(c == product(three, x, rows, b, bfloat16));
          CHECK(c == product(two, x, rows, b.turned(), bfloat16));
          double worst = 0;
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < b.count; ++j) {
              double sum = 0;
              double magnitude = 0;
              for (int64_t k = 0; k < depth; ++k) {
                const double term = double{x[static_cast<size_t>(i * depth + k)]} * double{b.at(k, j)};
                sum += term;
                magnitude += std::fabs(term);
              }
              // Both factors rounded to bfloat16 move a term by at most 2^-7 and a little of itself.
              const double bound =
                  magnitude * (std::sqrt(static_cast<double>(depth)) * 0x1p-23 + (bfloat16 ? 0x1.01p-7 : 0));
              worst =
                  std::max(worst, std::fabs(double{c[static_cast<size_t>(i * b.count + j)]} - sum) / bound);
            }
          if (!(worst <= 1))
            report(__FILE__, __LINE__,
                   std::string(quantaria::name_of(isa)) + " dtype " + std::string(quantaria::name_of(dtype)) +
                       " rows " + std::to_string(rows) + ": " + std::to_string(worst) + " times the bound");
        }
  });
}

TEST(
    "few rows times a dense matrix: infinity and NaN of either factor go the way of IEEE sums in both "
    "layouts") {
  ThreadPool pool(2);
  on_each_isa([&](Isa) {
    for (const DType dtype : kColumnTypes)
      for (const bool bfloat16 : {false, true})
        for (const int64_t rows : {1, 2, 3, 4})
          for (const float bad : {NAN, INFINITY, -INFINITY}) {
            const int64_t depth = 211;
            Columns b(dtype, depth, 37, true, 5);
            std::vector<float> x = random_activations(rows, depth, 6);
            x[static_cast<size_t>((rows - 1) * depth + 200)] = bad;
            b.set(depth - 1, 36, -INFINITY);
            b.set(7, 3, NAN);
            const std::vector<float> c = product(pool, x, rows, b, bfloat16);
            const std::vector<float> turned = product(pool, x, rows, b.turned(), bfloat16);
            for (int64_t i = 0; i < rows; ++i)
              for (int64_t j = 0; j < b.count; ++j) {
                double sum = 0;
                for (int64_t k = 0; k < depth; ++k)
                  sum += double{x[static_cast<size_t>(i * depth + k)]} * double{b.at(k, j)};
                for (const std::vector<float>* y : {&c, &turned}) {
                  const float value = (*y)[static_cast<size_t>(i * b.count + j)];
                  CHECK_EQ(std::isnan(value), std::isnan(sum));
                  if (std::isinf(sum)) CHECK_EQ(double{value}, sum);
                  if (std::isfinite(sum)) CHECK(std::isfinite(value));
                }
              }
          }
  });
}
