#include "dequant_matmul_test.h"

#include <tuple>

#include "core/error.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"

using namespace quantaria;
using namespace quantaria::test;
using ops::Codebook;
using ops::Float8;
using ops::Granularity;
using ops::MxElement;
using ops::Operand;

namespace {

/// Integer weights that kernels read word by word, so that int8 products of them exist.
std::vector<QuantizedWeight> integers_by_words(int64_t out, int64_t in, bool exact) {
  std::vector<QuantizedWeight> weights;
  for (const int bits : {2, 3, 4, 5, 6, 7, 8})
    for (const bool symmetric : {true, false}) {
      const CodeAt code = random_codes(static_cast<uint32_t>(bits), bits);
      for (const auto& [granularity, group] :
           {std::pair{Granularity::group, int64_t{32}}, std::pair{Granularity::group, int64_t{96}},
            std::pair{Granularity::row, int64_t{0}}, std::pair{Granularity::tensor, int64_t{0}}})
        weights.push_back(
            int_weight(int_scheme(bits, symmetric, granularity, group), out, in, code, 5, exact));
    }
  return weights;
}

/// One weight at least for every way in which products read one.
std::vector<QuantizedWeight> weights_of_every_kind(int64_t out, int64_t in) {
  std::vector<QuantizedWeight> weights = integers_by_words(out, in, false);
  const auto codes = [](int bits) { return random_codes(77, bits); };
  // Groups that end inside words, constants of columns, 16 bits: dequantized by strips.
  weights.push_back(int_weight(int_scheme(4, false, Granularity::group, 20), out, in, codes(4), 1));
  weights.push_back(int_weight(int_scheme(3, true, Granularity::group, 16), out, in, codes(3), 2));
  weights.push_back(int_weight(int_scheme(8, false, Granularity::column), out, in, codes(8), 3));
  weights.push_back(int_weight(int_scheme(16, true, Granularity::group, 32), out, in, codes(16), 4));
  weights.push_back(int_weight(int_scheme(16, false, Granularity::row), out, in, codes(16), 5));
  for (const Codebook book : {Codebook::nf4, Codebook::fp4, Codebook::e3m0, Codebook::dynamic8}) {
    const int bits = book == Codebook::dynamic8 ? 8 : 4;
    for (const int64_t block : {16, 32, 100, 4096})
      weights.push_back(codebook_weight({book, block, false}, out, in, codes(bits), 6));
    if (book == Codebook::dynamic8) continue;
    weights.push_back(codebook_weight({book, 32, true}, out, in, codes(bits), 7));
    weights.push_back(codebook_weight({book, 24, true}, out, in, codes(bits), 7));
  }
  const auto finite = [&](uint8_t last) {
    return [=](int64_t r, int64_t c) {
      const int code = random_codes(78, 8)(r, c);
      return (code & 0x7f) > last ? code & 0x80 : code;
    };
  };
  for (const bool per_row : {true, false}) {
    weights.push_back(fp8_weight({Float8::e4m3, per_row}, out, in, finite(0x7e), 8));
    weights.push_back(fp8_weight({Float8::e5m2, per_row}, out, in, finite(0x7b), 9));
  }
  for (const MxElement element : {MxElement::e4m3, MxElement::e5m2, MxElement::e3m2, MxElement::e2m3,
                                  MxElement::e2m1, MxElement::int8}) {
    const int bits = ops::mx_element_bits(element);
    const CodeAt code = element == MxElement::e4m3   ? CodeAt(finite(0x7e))
                        : element == MxElement::e5m2 ? CodeAt(finite(0x7b))
                                                     : codes(bits);
    for (const bool pre_scale : {false, true})
      weights.push_back(mx_weight({element, {}, pre_scale}, out, in, code, 10));
  }
  return weights;
}

}  // namespace

TEST("rows are put into tiles and back without loss, for any count of rows and words, on any threads") {
  on_each_isa([](Isa) {
    for (const int threads : {1, 3})
      for (const int64_t rows : {0, 1, 2, 15, 16, 17, 31, 32, 33, 100})
        for (const int64_t words : {0, 1, 2, 3, 15, 16, 17, 40, 129}) {
          ThreadPool pool(threads);
          std::vector<uint32_t> data(static_cast<size_t>(rows * words));
          std::iota(data.begin(), data.end(), 1u);
          const std::vector<uint32_t> before = data;
          ops::rows_to_tiles(pool, data.data(), rows, words);
          size_t wrong = 0;
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t w = 0; w < words; ++w) {
              const int64_t first = r / 16 * 16;
              const int64_t count = std::min<int64_t>(16, rows - first);
              wrong += data[static_cast<size_t>(first * words + w * count + (r - first))] !=
                       before[static_cast<size_t>(r * words + w)];
            }
          CHECK_EQ(wrong, size_t{0});
          ops::tiles_to_rows(pool, data.data(), rows, words);
          CHECK(data == before);
        }
  });
}

TEST(
    "every code of every table, at every place of a word, is decoded to its value: a product with the unit "
    "matrix is the weight") {
  ThreadPool pool(1);
  std::vector<QuantizedWeight> weights;
  for (const int bits : {2, 3, 4, 5, 6, 7, 8})
    for (const bool symmetric : {true, false})
      weights.push_back(
          int_weight(int_scheme(bits, symmetric, Granularity::group, 32), 256, 65, all_codes(bits), 1));
  for (const Codebook book : {Codebook::nf4, Codebook::fp4, Codebook::e3m0})
    weights.push_back(codebook_weight({book, 32, false}, 16, 64, all_codes(4), 2));
  weights.push_back(codebook_weight({Codebook::dynamic8, 16, false}, 256, 16, all_codes(8), 3));
  weights.push_back(codebook_weight({Codebook::nf4, 32, true}, 600, 32, all_codes(4), 4));
  for (const MxElement element : {MxElement::e3m2, MxElement::e2m3, MxElement::e2m1, MxElement::int8})
    weights.push_back(mx_weight({element, {}, false}, 256, 65, all_codes(ops::mx_element_bits(element)), 5));
  on_each_isa([&](Isa isa) {
    for (const QuantizedWeight& w : weights)
      for (const int64_t at_once : {int64_t{1}, int64_t{2}, int64_t{3}, int64_t{4}, w.in}) {
        int64_t wrong = 0;
        for (int64_t first = 0; first + at_once <= w.in; first += at_once) {
          std::vector<float> x(static_cast<size_t>(at_once * w.in));
          for (int64_t r = 0; r < at_once; ++r) x[w.at(r, first + r)] = 1;
          const std::vector<float> y = multiply(pool, w, x, Operand::float32);
          for (int64_t r = 0; r < at_once; ++r)
            for (int64_t j = 0; j < w.out; ++j)
              wrong += y[static_cast<size_t>(r * w.out + j)] != w.values[w.at(j, first + r)];
        }
        if (wrong > 0)
          report(__FILE__, __LINE__,
                 std::string(quantaria::name_of(isa)) + " " + w.name + " by " + std::to_string(at_once) +
                     ": " + std::to_string(wrong) + " wrong");
      }
  });
}

TEST(
    "every float8 code gives its value, NaN and infinities among them, in products of float32 and bfloat16") {
  ThreadPool pool(1);
  on_each_isa([&](Isa isa) {
    for (const bool mx : {false, true})
      for (const bool e4m3 : {true, false}) {
        const CodeAt code = [](int64_t r, int64_t) { return static_cast<int>(r); };
        const QuantizedWeight w =
            mx ? mx_weight({e4m3 ? MxElement::e4m3 : MxElement::e5m2, {}, false}, 256, 3, code, 1)
               : fp8_weight({e4m3 ? Float8::e4m3 : Float8::e5m2, true}, 256, 3, code, 1);
        for (const Operand operand : {Operand::float32, Operand::bfloat16})
          for (const int64_t rows : {1, 4, 5}) {
            const std::vector<float> x(static_cast<size_t>(rows * 3), 0.5f);
            const std::vector<float> y = multiply(pool, w, x, operand);
            for (size_t i = 0; i < y.size(); ++i) {
              const float* const v = &w.values[3 * (i % 256)];
              const float expected = 0.5f * v[0] + 0.5f * v[1] + 0.5f * v[2];
              const bool same = std::isfinite(expected)
                                    ? std::fabs(y[i] - expected) <= 0x1p-7f * std::fabs(expected)
                                : std::isnan(expected) ? std::isnan(y[i])
                                                       : y[i] == expected;
              if (!same)
                report(__FILE__, __LINE__,
                       std::string(quantaria::name_of(isa)) + " " + name_of(operand) + " " + w.name +
                           " code " + std::to_string(i % 256) + ": " + show(y[i]) + ", expected " +
                           show(expected));
            }
          }
      }
  });
}

TEST("products of small integers are exact in every arithmetic on every instruction set") {
  ThreadPool pool(2);
  on_each_isa([&](Isa isa) {
    for (const auto& [out, in] : {std::pair{33, 100}, std::pair{16, 192}, std::pair{5, 7}, std::pair{19, 1},
                                  std::pair{2, 14}, std::pair{1, 33}})
      for (const QuantizedWeight& w : integers_by_words(out, in, true))
        for (const int64_t rows : {1, 2, 3, 4, 5, 13}) {
          const std::vector<float> x = integer_activations(rows, w, 3);
          std::vector<float> expected(static_cast<size_t>(rows * out));
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < out; ++j) {
              double sum = 0;
              for (int64_t c = 0; c < in; ++c) sum += double{x[w.at(i, c)]} * double{w.values[w.at(j, c)]};
              expected[static_cast<size_t>(i * out + j)] = static_cast<float>(sum);
            }
          for (const Operand operand : {Operand::float32, Operand::bfloat16, Operand::int8}) {
            const std::vector<float> y = multiply(pool, w, x, operand);
            if (y == expected) continue;
            size_t at = 0;
            while (y[at] == expected[at]) ++at;
            report(__FILE__, __LINE__,
                   std::string(quantaria::name_of(isa)) + " " + name_of(operand) + " " + w.name + " x " +
                       std::to_string(rows) + " at " + std::to_string(at) + ": " + show(y[at]) +
                       ", expected " + show(expected[at]));
          }
        }
  });
}

TEST(
    "products of every kind of weight lie within the rounding bound of float64, with the same bits on 1, 2 "
    "and 3 threads") {
  ThreadPool one(1);
  ThreadPool two(2);
  ThreadPool three(3);
  on_each_isa([&](Isa isa) {
    for (const auto& [out, in] : {std::pair{50, 100}, std::pair{37, 192}, std::pair{3, 5}, std::pair{17, 1}})
      for (const QuantizedWeight& w : weights_of_every_kind(out, in)) {
        const bool integers = w.bits <= 8 && w.name.starts_with("int") && w.in_rows().tiled;
        for (const int64_t rows : {1, 2, 3, 4, 5, 13}) {
          const std::vector<float> x = random_activations(rows, in, 11);
          for (const Operand operand : {Operand::float32, Operand::bfloat16, Operand::int8}) {
            if (operand == Operand::int8 && !integers) continue;
            const std::vector<float> y = multiply(two, w, x, operand);
            check_product(w, x, operand, y, isa);
            CHECK(y == multiply(one, w, x, operand));
            CHECK(y == multiply(three, w, x, operand));
          }
        }
      }
  });
}

TEST("a deep product, cut into several panels, lies within the bound for any group") {
  ThreadPool pool(2);
  const int64_t in = 2600;
  on_each_isa([&](Isa isa) {
    for (const int bits : {3, 4, 8})
      for (const bool symmetric : {true, false})
        for (const int64_t group : {32, 1056, 4096}) {
          const QuantizedWeight w = int_weight(int_scheme(bits, symmetric, Granularity::group, group), 35, in,
                                               random_codes(4, bits), 6);
          for (const int64_t rows : {1, 14}) {
            const std::vector<float> x = random_activations(rows, in, 12);
            for (const Operand operand : {Operand::float32, Operand::bfloat16, Operand::int8})
              check_product(w, x, operand, multiply(pool, w, x, operand), isa);
          }
        }
    const QuantizedWeight book = codebook_weight({Codebook::nf4, 8, false}, 35, in, random_codes(5, 4), 7);
    for (const int64_t rows : {1, 14}) {
      const std::vector<float> x = random_activations(rows, in, 13);
      for (const Operand operand : {Operand::float32, Operand::bfloat16})
        check_product(book, x, operand, multiply(pool, book, x, operand), isa);
    }
  });
}

TEST(
    "int8 products of more groups than are decoded at once, and of more rows than share a panel, are exact") {
  ThreadPool pool(2);
  on_each_isa([&](Isa isa) {
    for (const auto& [out, in, rows] :
         {std::tuple{3, 9004, 1}, std::tuple{3, 9004, 5}, std::tuple{20, 70, 289}, std::tuple{20, 70, 600}})
      for (const bool symmetric : {true, false}) {
        const QuantizedWeight w = int_weight(int_scheme(4, symmetric, Granularity::group, 32), out, in,
                                             random_codes(4, 4), 6, true);
        const std::vector<float> x = integer_activations(rows, w, 3);
        for (const Operand operand : {Operand::float32, Operand::bfloat16, Operand::int8}) {
          const std::vector<float> y = multiply(pool, w, x, operand);
          int64_t wrong = 0;
          for (int64_t i = 0; i < rows; ++i)
            for (int64_t j = 0; j < out; ++j) {
              double sum = 0;
              for (int64_t c = 0; c < in; ++c) sum += double{x[w.at(i, c)]} * double{w.values[w.at(j, c)]};
              wrong += y[static_cast<size_t>(i * out + j)] != sum;
            }
          if (wrong > 0)
            report(__FILE__, __LINE__,
                   std::string(quantaria::name_of(isa)) + " " + name_of(operand) + " " + w.name + ": " +
                       std::to_string(wrong) + " sums are wrong");
        }
      }
  });
}

TEST("activations of any dtype and layout, or rows by a list, are multiplied as their values") {
  ThreadPool pool(1);
  on_each_isa([&](Isa) {
    for (const int bits : {3, 4, 8})
      for (const int64_t rows : {1, 2, 4, 9}) {
        const int64_t in = 37;  // ends inside a unit of codes
        QuantizedWeight w =
            int_weight(int_scheme(bits, false, Granularity::row), 20, in, random_codes(1, bits), 2);
        const ops::WeightProducts products = w.products(w.packed.data(), w.scales.data(), w.zeros.data());
        ops::rows_to_tiles(pool, reinterpret_cast<uint32_t*>(w.packed.data()), products.rows,
                           products.words_per_row);
        const std::vector<float> x = integer_activations(rows, w, 4);
        for (const Operand operand : {Operand::float32, Operand::bfloat16, Operand::int8}) {
          const std::unique_ptr<ops::Factor> factor = products.factor(operand, DType::float32);
          const auto run = [&](const void* data, DType dtype, bool columns_first) {
            std::vector<float> y(static_cast<size_t>(rows * 20), NAN);
            ops::linear(pool,
                        {static_cast<const std::byte*>(data), dtype, rows, in, columns_first ? 1 : in,
                         columns_first ? rows : 1},
                        *factor, nullptr,
                        {reinterpret_cast<std::byte*>(y.data()), DType::float32, rows, 20, 20, 1});
            return y;
          };
          const std::vector<float> expected = run(x.data(), DType::float32, false);
          std::vector<float> turned(x.size());
          std::vector<uint16_t> half(x.size());
          std::vector<uint16_t> brain(x.size());
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < in; ++c) {
              const float value = x[w.at(r, c)];
              turned[static_cast<size_t>(c * rows + r)] = value;
              half[w.at(r, c)] = numerics::half_from_float(value);
              brain[static_cast<size_t>(c * rows + r)] = numerics::bfloat16_from_float(value);
            }
          CHECK(run(turned.data(), DType::float32, true) == expected);
          CHECK(run(half.data(), DType::float16, false) == expected);
          CHECK(run(brain.data(), DType::bfloat16, true) == expected);

          std::vector<int32_t> last_first(static_cast<size_t>(rows));
          for (int64_t r = 0; r < rows; ++r)
            last_first[static_cast<size_t>(r)] = static_cast<int32_t>(rows - 1 - r);
          std::vector<float> y(expected.size(), NAN);
          ops::Product job;
          job.rows = {{reinterpret_cast<const std::byte*>(x.data()), DType::float32, rows, in, in, 1},
                      last_first.data(),
                      rows};
          job.factors[0] = factor.get();
          job.store = [&](const ops::Piece& piece) {
            for (int64_t r = 0; r < piece.rows; ++r)
              std::copy_n(piece.c[0] + r * piece.stride, piece.columns,
                          y.begin() + (rows - 1 - piece.row - r) * 20 + piece.column);
          };
          ops::multiply_all(pool, {job});
          CHECK(y == expected);
        }
      }
  });
}

TEST("scales of sixteen bits give the same products as in float32, and come back as they were") {
  ThreadPool pool(2);
  on_each_isa([&](Isa) {
    for (const DType dtype : {DType::float16, DType::bfloat16})
      for (const int64_t out : {1, 16, 41}) {
        const int64_t in = 2208;  // more groups than fit a chunk, the last one short
        QuantizedWeight w =
            int_weight(int_scheme(4, false, Granularity::group, 64), out, in, random_codes(3, 4), 5);
        // 2^-20 is no normal float16, 3 * 2^20 none at all.
        const float far = dtype == DType::float16 ? 0x1p-20f : 0x3p20f;
        for (size_t i = 0; i < w.scales.size(); ++i)
          w.scales[i] = i % 5 == 0 ? far : static_cast<float>(128 + i % 128) * 0x1p-9f;
        std::vector<float> narrowed = w.scales;
        const auto count = static_cast<int64_t>(narrowed.size());
        CHECK(ops::narrow_scales(narrowed.data(), count) == dtype);
        CHECK(narrowed != w.scales);
        ops::widen_scales(narrowed.data(), count, dtype);
        CHECK(narrowed == w.scales);
        for (const int64_t rows : {1, 4, 9}) {
          const std::vector<float> x = integer_activations(rows, w, 4);
          for (const Operand operand : {Operand::float32, Operand::bfloat16, Operand::int8})
            CHECK(multiply(pool, w, x, operand) == multiply(pool, w, x, operand, false));
        }
      }
  });
}

TEST("scales that sixteen bits do not hold stay as they are") {
  for (const float odd : {1 + 0x1p-11f, 0x1p-149f, 0x1p20f + 0x1p8f}) {
    std::vector<float> scales(1500, 0.25f);
    scales[1400] = odd;
    const std::vector<float> before = scales;
    CHECK(ops::narrow_scales(scales.data(), 1500) == DType::float32);
    CHECK_EQ(std::memcmp(scales.data(), before.data(), 1500 * 4), 0);
  }
}

TEST("int8 products are refused where codes are no integers or groups do not fit words") {
  const auto refused = [](const QuantizedWeight& w) {
    CHECK_THROWS(Error, w.in_rows().factor(Operand::int8, DType::float32));
  };
  refused(codebook_weight({Codebook::nf4, 32, false}, 4, 64, all_codes(4), 1));
  refused(fp8_weight({Float8::e4m3, true}, 4, 64, all_codes(7), 1));
  refused(mx_weight({MxElement::int8, {}, false}, 4, 64, all_codes(8), 1));
  refused(int_weight(int_scheme(16, true, Granularity::row), 4, 64, all_codes(8), 1));
  refused(int_weight(int_scheme(4, true, Granularity::column), 4, 64, all_codes(4), 1));
  refused(int_weight(int_scheme(4, true, Granularity::group, 12), 4, 64, all_codes(4), 1));
}

TEST("a row of activations with a NaN or infinity gives no finite sum and leaves other rows alone") {
  ThreadPool pool(1);
  on_each_isa([&](Isa) {
    for (const bool symmetric : {true, false}) {
      // No code stands for zero, which would turn an infinity into NaN.
      const CodeAt odd = [](int64_t r, int64_t c) { return static_cast<int>((r + c) % 2 == 0 ? 15 : 1); };
      QuantizedWeight w = int_weight(int_scheme(4, symmetric, Granularity::group, 32), 34, 70, odd, 1);
      for (const float bad : {std::nanf(""), INFINITY, -INFINITY})
        for (const int64_t rows : {2, 4, 9})
          for (const Operand operand : {Operand::float32, Operand::bfloat16, Operand::int8}) {
            std::vector<float> x = random_activations(rows, 70, 3);
            const std::vector<float> clean = multiply(pool, w, x, operand);
            x[w.at(1, 69)] = bad;
            const std::vector<float> y = multiply(pool, w, x, operand);
            for (int64_t i = 0; i < rows; ++i)
              for (int64_t j = 0; j < 34; ++j) {
                const auto at = static_cast<size_t>(i * 34 + j);
                CHECK(i == 1 ? !std::isfinite(y[at]) : y[at] == clean[at]);
              }
          }
    }
  });
}

TEST("activations that are all zero or subnormal stay within the bound") {
  ThreadPool pool(1);
  on_each_isa([&](Isa isa) {
    const QuantizedWeight w =
        int_weight(int_scheme(4, true, Granularity::group, 32), 20, 64, random_codes(1, 4), 1);
    for (const float factor : {0.0f, 0x1p-130f, 0x1p-100f, 0x1p100f})
      for (const int64_t rows : {1, 6}) {
        std::vector<float> x = random_activations(rows, 64, 3);
        for (float& value : x) value *= factor;
        check_product(w, x, Operand::float32, multiply(pool, w, x, Operand::float32), isa);
        check_product(w, x, Operand::bfloat16, multiply(pool, w, x, Operand::bfloat16), isa);
        if (factor != 0x1p-130f) check_product(w, x, Operand::int8, multiply(pool, w, x, Operand::int8), isa);
      }
  });
}
