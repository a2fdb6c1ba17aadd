#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "check.h"
#include "dequant_matmul_test.h"
#include "ops/copy/convert.h"
#include "ops/gemm/dense_factor.h"

using namespace quantaria;
using namespace quantaria::test;
using ops::Granularity;
using ops::Operand;

namespace {

std::vector<std::byte> stored_as(DType dtype, const std::vector<float>& values) {
  std::vector<std::byte> bytes(values.size() * static_cast<size_t>(size_of(dtype)));
  ops::convert_row(DType::float32, reinterpret_cast<const std::byte*>(values.data()), dtype, bytes.data(),
                   static_cast<int64_t>(values.size()));
  return bytes;
}
std::vector<float> values_of(DType dtype, const std::vector<std::byte>& bytes) {
  std::vector<float> values(bytes.size() / static_cast<size_t>(size_of(dtype)));
  ops::convert_row(dtype, bytes.data(), DType::float32, reinterpret_cast<std::byte*>(values.data()),
                   static_cast<int64_t>(values.size()));
  return values;
}

/// y of a dtype with a gap behind each row, both poisoned.
struct Output {
  static constexpr int64_t kGap = 3;
  int64_t rows, columns;
  DType dtype;
  std::vector<std::byte> bytes;

  Output(int64_t r, int64_t n, DType type)
      : rows(r),
        columns(n),
        dtype(type),
        bytes(static_cast<size_t>(r * (n + kGap) * size_of(type)), kPoison) {}
  Matrix view() { return {bytes.data(), dtype, rows, columns, columns + kGap, 1}; }
  /// Without the gaps, which must be as they were.
  std::vector<std::byte> read() const {
    std::vector<std::byte> all;
    const int64_t row = columns * size_of(dtype);
    for (int64_t r = 0; r < rows; ++r) {
      const auto begin = bytes.begin() + r * (row + kGap * size_of(dtype));
      all.insert(all.end(), begin, begin + row);
      CHECK(std::all_of(begin + row, begin + row + kGap * size_of(dtype),
                        [](std::byte b) { return b == kPoison; }));
    }
    return all;
  }

 private:
  static constexpr std::byte kPoison{0xa5};
};

constexpr DType kOutputs[] = {DType::float32, DType::float16, DType::bfloat16, DType::float8_e4m3,
                              DType::float8_e5m2};
constexpr DType kInputs[] = {DType::float32, DType::float16, DType::bfloat16};

}  // namespace

TEST("linear: the bias of any dtype is added in float32, and the sum is rounded once to y's dtype") {
  ThreadPool pool(2);
  on_each_isa([&](Isa) {
    int turn = 0;
    for (const int64_t out : {1, 16, 17, 33, 70})
      for (const int64_t in : {0, 1, 31, 64, 97})
        for (const int64_t rows : {0, 1, 2, 5, 13}) {
          const QuantizedWeight weights[] = {
              int_weight(int_scheme(4, false, Granularity::group, 32), out, in, random_codes(1, 4), 2),
              int_weight(int_scheme(8, true, Granularity::row), out, in, random_codes(1, 8), 2),
              int_weight(int_scheme(3, false, Granularity::column), out, in, random_codes(1, 3), 2),
              fp8_weight({ops::Float8::e4m3, true}, out, in, all_codes(6), 2)};
          for (const QuantizedWeight& w : weights) {
            ++turn;
            const Operand operand = turn % 2 == 0 ? Operand::float32 : Operand::bfloat16;
            const DType input = kInputs[turn % 3];
            const StoredFactor stored(pool, w, operand);
            const std::vector<std::byte> x = stored_as(input, random_activations(rows, in, 3));
            const ConstMatrix x_view{x.data(), input, rows, in, in, 1};
            std::vector<float> plain(static_cast<size_t>(rows * out), -1234.5f);
            ops::linear(pool, x_view, *stored.factor, nullptr,
                        {reinterpret_cast<std::byte*>(plain.data()), DType::float32, rows, out, out, 1});
            const DType bias_dtype = kInputs[turn / 3 % 3];
            const std::vector<std::byte> bias = stored_as(bias_dtype, random_activations(1, out, 4));
            const ConstMatrix bias_view{bias.data(), bias_dtype, 1, out, out, 1};
            const std::vector<float> added = values_of(bias_dtype, bias);
            for (const DType output : kOutputs)
              for (const bool biased : {false, true}) {
                Output y(rows, out, output);
                ops::linear(pool, x_view, *stored.factor, biased ? &bias_view : nullptr, y.view());
                std::vector<float> expected = plain;
                for (size_t i = 0; biased && i < expected.size(); ++i)
                  expected[i] += added[i % static_cast<size_t>(out)];
                if (y.read() != stored_as(output, expected))
                  report(__FILE__, __LINE__,
                         w.name + " x " + std::to_string(rows) + " rows, " +
                             std::string(quantaria::name_of(output)) + (biased ? " with bias" : ""));
              }
          }
        }
  });
}

TEST("linear: no depth leaves the bias, and no columns or rows leave nothing") {
  ThreadPool pool(1);
  on_each_isa([&](Isa) {
    for (const Operand operand : {Operand::float32, Operand::bfloat16, Operand::int8})
      for (const int64_t rows : {0, 1, 4, 9}) {
        const std::vector<float> bias{1, -2, 3};
        const ConstMatrix bias_view{
            reinterpret_cast<const std::byte*>(bias.data()), DType::float32, 1, 3, 3, 1};
        const QuantizedWeight w =
            int_weight(int_scheme(4, true, Granularity::row), 3, 0, random_codes(1, 4), 2);
        const StoredFactor stored(pool, w, operand);
        Output y(rows, 3, DType::float32);
        ops::linear(pool, {nullptr, DType::float32, rows, 0, 0, 1}, *stored.factor, &bias_view, y.view());
        std::vector<float> expected;
        for (int64_t r = 0; r < rows; ++r) expected.insert(expected.end(), bias.begin(), bias.end());
        CHECK_EQ(values_of(DType::float32, y.read()), expected);

        const QuantizedWeight none =
            int_weight(int_scheme(4, true, Granularity::row), 0, 5, random_codes(1, 4), 2);
        const StoredFactor no_columns(pool, none, operand);
        const std::vector<float> x = random_activations(rows, 5, 1);
        Output empty(rows, 0, DType::bfloat16);
        ops::linear(pool, {reinterpret_cast<const std::byte*>(x.data()), DType::float32, rows, 5, 5, 1},
                    *no_columns.factor, nullptr, empty.view());
        CHECK_EQ(empty.read().size(), size_t{0});
      }
  });
}

// ---- Activations that are not finite, times affine weights: a zero point may be taken off after the sum.

TEST(
    "linear: an infinite activation times (code - zero) * scale has that product's sign, or is NaN at zero") {
  ThreadPool pool(1);
  on_each_isa([&](Isa isa) {
    const struct {
      Granularity granularity;
      int64_t group;
    } kGroups[] = {{Granularity::row, 0},
                   {Granularity::tensor, 0},
                   {Granularity::group, 32},
                   {Granularity::group, 128},
                   {Granularity::column, 0}};
    for (const int bits : {2, 3, 4, 8})
      for (const auto& [granularity, group] : kGroups) {
        const int64_t in = 203;
        const QuantizedWeight w =
            int_weight(int_scheme(bits, false, granularity, group), 37, in, random_codes(6, bits), 7);
        for (const Operand operand : {Operand::float32, Operand::bfloat16, Operand::int8}) {
          if (operand == Operand::int8 && granularity == Granularity::column) continue;
          for (const int64_t rows : {1, 2, 3, 4, 9}) {
            const std::vector<float> clean = random_activations(rows, in, 8);
            const std::vector<float> undisturbed = multiply(pool, w, clean, operand);
            const auto check = [&](std::initializer_list<std::pair<int64_t, float>> bad) {
              std::vector<float> x = clean;
              for (const auto& [column, value] : bad) x[w.at(rows / 2, column)] = value;
              const std::vector<float> y = multiply(pool, w, x, operand);
              for (int64_t i = 0; i < rows; ++i)
                for (int64_t j = 0; j < w.out; ++j) {
                  const auto at = static_cast<size_t>(i * w.out + j);
                  double sum = 0;
                  for (int64_t c = 0; c < in; ++c)
                    sum += double{x[w.at(i, c)]} * double{w.values[w.at(j, c)]};
                  const bool same = i != rows / 2     ? y[at] == undisturbed[at]
                                    : std::isnan(sum) ? std::isnan(y[at])
                                                      : double{y[at]} == sum;
                  if (!same)
                    return report(__FILE__, __LINE__,
                                  std::string(quantaria::name_of(isa)) + " " + test::name_of(operand) + " " +
                                      w.name + " at (" + std::to_string(i) + ", " + std::to_string(j) +
                                      "): " + show(y[at]) + ", expected " + show(sum));
                }
            };
            check({{0, INFINITY}});
            check({{in - 1, -INFINITY}});
            check({{70, NAN}});
            if (granularity != Granularity::group && operand == Operand::int8) continue;
            check({{3, INFINITY}, {130, INFINITY}});
            check({{31, -INFINITY}, {in - 2, INFINITY}});
            if (operand != Operand::int8) check({{40, INFINITY}, {41, INFINITY}});
          }
        }
      }
  });
}

TEST("linear: several infinities of one group that int8 activations share a scale in give NaN") {
  ThreadPool pool(1);
  on_each_isa([&](Isa) {
    const QuantizedWeight w =
        int_weight(int_scheme(4, false, Granularity::group, 32), 20, 70, random_codes(6, 4), 7);
    for (const int64_t rows : {1, 4, 9})
      for (const float second : {INFINITY, -INFINITY, NAN}) {
        std::vector<float> x = random_activations(rows, 70, 8);
        x[w.at(0, 33)] = INFINITY;
        x[w.at(0, 40)] = second;
        const std::vector<float> y = multiply(pool, w, x, Operand::int8);
        CHECK(std::all_of(y.begin(), y.begin() + 20, [](float v) { return std::isnan(v); }));
        CHECK(std::all_of(y.begin() + 20, y.end(), [](float v) { return std::isfinite(v); }));
      }
  });
}

TEST("linear: finite activations whose sum overflows give the finite products that they have") {
  ThreadPool pool(1);
  on_each_isa([&](Isa) {
    // Codes 8 and 6 about a zero point of 7: 1 and -1.
    const CodeAt code = [](int64_t, int64_t c) { return c == 1 ? 8 : c == 2 ? 6 : 7; };
    QuantizedWeight w = int_weight(int_scheme(4, false, Granularity::group, 32), 18, 64, code, 7);
    std::fill(w.zeros.begin(), w.zeros.end(), 7);
    std::fill(w.scales.begin(), w.scales.end(), 0.5f);
    for (const int64_t rows : {1, 4, 9})
      for (const Operand operand : {Operand::float32, Operand::bfloat16, Operand::int8}) {
        std::vector<float> x(static_cast<size_t>(rows * 64), 0.0f);
        x[1] = x[2] = 0x1.8p127f;
        const std::vector<float> y = multiply(pool, w, x, operand);
        CHECK(std::all_of(y.begin(), y.end(), [](float v) { return v == 0; }));
      }
  });
}

// ---- LLM.int8

TEST("llm.int8: integers are exact at odd shapes, with outliers in no column, some or all, and a bias") {
  on_each_isa([&](Isa isa) {
    for (const int threads : {1, 2}) {
      ThreadPool pool(threads);
      for (const int64_t out : {1, 16, 19, 35})
        for (const int64_t in : {1, 4, 37, 70})
          for (const int64_t rows : {1, 3, 4, 11})
            for (const int64_t every : {int64_t{0}, int64_t{1}, int64_t{5}, in}) {  // the last one only: in
              // Values code * 2^k: absmax 127 * 2^k.
              std::vector<int8_t> codes(static_cast<size_t>(out * in));
              std::mt19937 random(3);
              std::uniform_int_distribution<int> any(-127, 127);
              for (int8_t& c : codes) c = static_cast<int8_t>(any(random));
              std::vector<uint8_t> packed = pack_codes(out, in, 8, [&](int64_t r, int64_t c) {
                return codes[static_cast<size_t>(r * in + c)] + 128;
              });
              std::vector<float> absmax(static_cast<size_t>(out));
              for (int64_t r = 0; r < out; ++r)
                absmax[static_cast<size_t>(r)] = 127 * std::ldexp(1.0f, static_cast<int>(r % 4) - 2);
              ops::rows_to_tiles(pool, reinterpret_cast<uint32_t*>(packed.data()), out,
                                 ops::packed_row_bytes(in, 8) / 4);
              std::uniform_int_distribution<int> small(-8, 8);
              std::vector<float> x(static_cast<size_t>(rows * in));
              for (int64_t r = 0; r < rows; ++r)
                for (int64_t c = 0; c < in; ++c) {
                  const bool outlier = every > 0 && (c + 1) % every == 0;
                  // The last plain column's magnitude makes codes the values themselves.
                  const bool largest = c == 0 || c == 1;
                  x[static_cast<size_t>(r * in + c)] =
                      outlier ? static_cast<float>((r % 2 == 0 ? 300 : -200) + c)
                              : static_cast<float>(largest ? 127 : small(random));
                }
              const std::vector<float> bias = random_activations(1, out, 4);
              const ConstMatrix bias_view{
                  reinterpret_cast<const std::byte*>(bias.data()), DType::float32, 1, out, out, 1};
              for (const DType output : {DType::float32, DType::bfloat16})
                for (const bool biased : {false, true}) {
                  Output y(rows, out, output);
                  ops::llm_int8_linear(
                      pool, {reinterpret_cast<const std::byte*>(x.data()), DType::float32, rows, in, in, 1},
                      128, packed.data(), absmax.data(), biased ? &bias_view : nullptr, y.view());
                  std::vector<float> expected(static_cast<size_t>(rows * out));
                  for (int64_t i = 0; i < rows; ++i)
                    for (int64_t j = 0; j < out; ++j) {
                      double sum = 0;
                      for (int64_t c = 0; c < in; ++c)
                        sum += double{x[static_cast<size_t>(i * in + c)]} *
                               codes[static_cast<size_t>(j * in + c)] * absmax[static_cast<size_t>(j)] / 127;
                      const float exact = static_cast<float>(sum);
                      expected[static_cast<size_t>(i * out + j)] =
                          biased ? exact + bias[static_cast<size_t>(j)] : exact;
                    }
                  if (y.read() != stored_as(output, expected))
                    report(__FILE__, __LINE__,
                           std::string(quantaria::name_of(isa)) + shape_name(out, in) + " x " +
                               std::to_string(rows) + " rows, outliers every " + std::to_string(every));
                }
            }
    }
  });
}
