#include "gptq_test.h"

#include "core/error.h"

namespace {

using namespace quantaria;
using namespace quantaria::ops;
using namespace quantaria::test;

/// Round-to-nearest, in the same form.
GptqResult nearest(ThreadPool& pool, const Weight& w, const IntScheme& scheme) {
  const ConstantsShape shape = constants_shape(scheme, w.rows, w.cols);
  const int64_t row_bytes = packed_row_bytes(w.cols, scheme.bits);
  GptqResult result;
  std::vector<uint8_t> packed(static_cast<size_t>(w.rows * row_bytes));
  result.scales.resize(static_cast<size_t>(shape.rows * shape.cols));
  result.zeros.resize(result.scales.size());
  result.codes.resize(w.values.size());
  result.values.resize(w.values.size());
  int32_t* const zeros = scheme.symmetric ? nullptr : result.zeros.data();
  quantize_int(pool, w.view(), scheme, {packed.data(), result.scales.data(), zeros});
  unpack_bits(pool, packed.data(), row_bytes, scheme.bits, 0,
              {reinterpret_cast<std::byte*>(result.codes.data()), DType::int32, w.rows, w.cols, w.cols, 1});
  dequantize_int(pool, scheme, {packed.data(), result.scales.data(), zeros}, w.rows, w.cols, DType::float32,
                 reinterpret_cast<std::byte*>(result.values.data()));
  return result;
}

/// The weight less what it became.
std::vector<double> lost(const Weight& w, const GptqResult& result) {
  std::vector<double> d(w.values.size());
  for (size_t i = 0; i < d.size(); ++i) d[i] = static_cast<double>(w.values[i]) - result.values[i];
  return d;
}

template <class Values>
std::vector<double> magnitudes(const Values& values) {
  std::vector<double> found;
  for (const auto value : values) found.push_back(std::abs(static_cast<double>(value)));
  return found;
}

std::vector<IntScheme> all_schemes(int64_t group) {
  std::vector<IntScheme> schemes;
  for (const bool symmetric : {true, false}) {
    for (const int bits : {2, 3, 5, 8})
      schemes.push_back({.bits = bits, .symmetric = symmetric, .group_size = group});
    for (const Granularity granularity :
         {Granularity::tensor, Granularity::row, Granularity::column, Granularity::group})
      schemes.push_back({.bits = 4,
                         .symmetric = symmetric,
                         .full_range = symmetric,
                         .granularity = granularity,
                         .group_size = group,
                         .scale_dtype = DType::float16});
    schemes.push_back({.bits = 3, .symmetric = symmetric, .mse_search = true, .group_size = group});
  }
  return schemes;
}

TEST("gptq with a diagonal Hessian is round-to-nearest bit for bit on every ISA and thread count") {
  for (const test::Shape shape : {test::Shape{1, 1}, {17, 127}, {33, 160}, {0, 64}, {5, 0}}) {
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      const Weight w = make_weight(shape.rows, shape.cols, dtype, shape.cols % 2 == 0);
      std::vector<float> products(static_cast<size_t>(w.cols * w.cols));
      for (int64_t c = 0; c < w.cols; ++c)
        products[static_cast<size_t>(c * w.cols + c)] = static_cast<float>(1 + c * 7 % 11);
      for (const IntScheme& scheme : all_schemes(w.cols == 160 ? 150 : 48)) {
        ThreadPool one(1);
        const GptqResult expected = nearest(one, w, scheme);
        on_every_machine([&](ThreadPool& pool) {
          const GptqResult actual = run_gptq(pool, w, products, scheme, {.block_size = 64});
          CHECK(actual.codes == expected.codes);
          CHECK(bits_of_all(actual.scales) == bits_of_all(expected.scales));
          CHECK(actual.zeros == expected.zeros || scheme.symmetric);
          CHECK_EQ(actual.report.attempts, w.cols == 0 ? 0 : 1);
        });
      }
    }
  }
}

struct Case {
  int64_t rows;
  int64_t in;
  IntScheme scheme;
  GptqOptions options;
  std::vector<int64_t> dead;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const bool symmetric : {true, false})
    for (const bool act_order : {false, true})
      for (const bool static_groups : {false, true})
        for (const int64_t group : {32, 48, 100, 128, 150, 200}) {
          if (static_groups && group != 32 && group != 100) continue;
          all.push_back({.rows = 21,
                         .in = 220,
                         .scheme = {.bits = 4, .symmetric = symmetric, .group_size = group},
                         .options = {.act_order = act_order, .static_groups = static_groups},
                         .dead = {}});
          if (group == 48) all.back().scheme.mse_search = true;
          if (group == 100) all.back().dead = {3, 77, 219};
          if (group == 128) all.back().options.block_size = 40;
          if (group == 200) all.back().scheme.bits = 3;
          if (!act_order) continue;
          all.push_back(all.back());
          all.back().options.group_order = true;
        }
  for (const Granularity granularity : {Granularity::tensor, Granularity::row, Granularity::column})
    for (const bool act_order : {false, true})
      all.push_back({.rows = 16,
                     .in = 131,
                     .scheme = {.bits = 4, .symmetric = act_order, .granularity = granularity},
                     .options = {.act_order = act_order, .damping = 0.05},
                     .dead = {0}});
  return all;
}

/// A weight without rows of exact ties, which rounding errors of the products decide.
Weight plain_weight(int64_t rows, int64_t in, uint32_t seed) {
  Weight w = make_weight(rows + 10, in, DType::float32, false, seed);
  w.values.erase(w.values.begin(), w.values.begin() + 10 * in);
  w.rows = rows;
  store_values(w);
  return w;
}

TEST("gptq gives the codes of the float64 algorithm but for weights that lie within rounding of a tie") {
  for (const Case& c : cases()) {
    const Weight w = plain_weight(c.rows, c.in, 5);
    const Square products = products_of(make_states(300, c.in, 6, c.dead), c.in);
    Weight live = w;
    for (int64_t r = 0; r < w.rows; ++r)
      for (const int64_t d : c.dead) live.values[static_cast<size_t>(r * w.cols + d)] = 0;
    store_values(live);
    ThreadPool one(1);
    const GptqResult fixed = nearest(one, live, c.scheme);
    const GptqResult expected = gptq_by_definition(w, products, c.scheme, c.options, &fixed);
    const double allowed = 1.01 * energy(lost(w, expected), products, c.in);
    const double weight = energy(w.values, products, c.in);
    std::vector<float> seen;
    double mine = 0;
    on_every_machine([&](ThreadPool& pool) {
      const GptqResult actual = run_gptq(pool, w, as_floats(products), c.scheme, c.options);
      CHECK(actual.group_index == expected.group_index);
      // A code that falls to the other side of a tie changes what follows in its row.
      int64_t same_rows = 0;
      for (int64_t r = 0; r < w.rows; ++r)
        same_rows += std::equal(actual.codes.begin() + r * w.cols, actual.codes.begin() + (r + 1) * w.cols,
                                expected.codes.begin() + r * w.cols);
      if (same_rows < w.rows - 3)
        report(__FILE__, __LINE__,
               "group " + show(c.scheme.group_size) + " act order " + show(c.options.act_order) +
                   show(c.options.group_order) + " static " + show(c.options.static_groups) + ": " +
                   show(same_rows) + " of " + show(w.rows) + " rows equal");
      if (actual.values != seen) {
        seen = actual.values;
        mine = energy(lost(w, actual), products, c.in);
      }
      CHECK(mine <= allowed);
      // 2 / samples = 1: the report is in the products' own scale.
      CHECK(std::abs(actual.report.error - mine) <= 1e-5 * mine);
      CHECK(std::abs(actual.report.weight - weight) <= 1e-5 * weight);
      CHECK_EQ(actual.report.dead_columns, static_cast<int64_t>(c.dead.size()));
      for (int64_t r = 0; r < w.rows; ++r)
        for (const int64_t d : c.dead) CHECK_EQ(actual.values[static_cast<size_t>(r * w.cols + d)], 0.0f);
    });
  }
}

TEST("gptq measures a weight beside its own, of any dtype and layout") {
  const Weight w = make_weight(37, 150, DType::float16, true);
  const Square products = products_of(make_states(100, w.cols, 8, {5}), w.cols);
  for (const DType dtype : {DType::float32, DType::bfloat16})
    for (const bool transposed : {false, true}) {
      Weight other = make_weight(w.rows, w.cols, dtype, transposed);
      for (size_t i = 0; i < other.values.size(); ++i) other.values[i] = 0.9f * w.values[i];
      store_values(other);
      std::vector<float> difference(w.values.size());
      for (size_t i = 0; i < difference.size(); ++i) difference[i] = w.values[i] - other.values[i];
      const double expected = energy(difference, products, w.cols);
      on_every_machine([&](ThreadPool& pool) {
        const ConstMatrix beside = other.view();
        const GptqResult actual = run_gptq(pool, w, as_floats(products), {.bits = 4, .group_size = 32},
                                           {.act_order = true}, 2, &beside);
        CHECK(std::abs(actual.report.beside - expected) <= 1e-5 * expected);
      });
    }
}

TEST("gptq gives the same bits for any thread count") {
  const Weight w = make_weight(70, 150, DType::float16, true);
  const std::vector<float> products = as_floats(products_of(make_states(100, w.cols, 8), w.cols));
  for (const IntScheme& scheme : all_schemes(64)) {
    const GptqOptions options{.act_order = true};
    for (int isa = 0; isa <= static_cast<int>(detected_isa()); ++isa) {
      select_isa(static_cast<Isa>(isa));
      ThreadPool one(1);
      const GptqResult expected = run_gptq(one, w, products, scheme, options);
      for (const int threads : {2, 3, 5}) {
        ThreadPool pool(threads);
        const GptqResult actual = run_gptq(pool, w, products, scheme, options);
        CHECK(actual.codes == expected.codes);
        CHECK(bits_of_all(actual.scales) == bits_of_all(expected.scales));
        CHECK_EQ(actual.report.error, expected.report.error);
        CHECK_EQ(actual.report.weight, expected.report.weight);
      }
    }
  }
  select_isa(detected_isa());
}

TEST("gptq loses less of the output than round-to-nearest, also with fewer states than columns") {
  const Weight w = plain_weight(40, 200, 9);
  for (const int64_t states : {1, 20, 1000}) {
    const Square products = products_of(make_states(states, w.cols, 10), w.cols);
    for (const int bits : {2, 3, 4, 8})
      for (const bool act_order : {false, true})
        on_every_machine([&](ThreadPool& pool) {
          const IntScheme scheme{.bits = bits, .symmetric = false, .group_size = 40};
          const GptqResult actual = run_gptq(pool, w, as_floats(products), scheme, {.act_order = act_order});
          CHECK(energy(lost(w, actual), products, w.cols) <
                energy(lost(w, nearest(pool, w, scheme)), products, w.cols));
        });
  }
}

TEST("gptq reports the error without the damping, however much of what was spread is due to it") {
  const Weight w = plain_weight(40, 200, 16);
  for (const int64_t states : {20, 1000}) {
    const Square products = products_of(make_states(states, w.cols, 17), w.cols);
    for (const double damping : {0.0001, 0.01, 1.0, 100.0})
      on_every_machine([&](ThreadPool& pool) {
        const GptqResult actual =
            run_gptq(pool, w, as_floats(products), {.bits = 4, .group_size = 40}, {.damping = damping});
        const double expected = energy(lost(w, actual), products, w.cols);
        // Few states leave little of the error, and few digits of it.
        CHECK(std::abs(actual.report.error - expected) <= (states < w.cols ? 1e-4 : 1e-5) * expected);
      });
  }
}

TEST("gptq raises the damping of what is not positive definite and says so") {
  const Weight w = plain_weight(20, 140, 11);
  std::vector<float> products(static_cast<size_t>(w.cols * w.cols), 2.0f);
  for (int64_t c = 0; c < w.cols; ++c) products[static_cast<size_t>(c * w.cols + c)] = 1.0f;
  on_every_machine([&](ThreadPool& pool) {
    const GptqResult actual = run_gptq(pool, w, products, {.bits = 4, .group_size = 32}, {});
    // Eigenvalues -1 and 2 * 139 + 1: a damping above 1 is needed.
    CHECK_EQ(actual.report.attempts, 4);
    CHECK_EQ(actual.report.damping, 0.01 * 10 * 10 * 10);
    const GptqResult undamped = run_gptq(pool, w, products, {.bits = 4, .group_size = 32}, {.damping = 0});
    CHECK_EQ(undamped.report.attempts, 7);
    for (const int32_t code : actual.codes) CHECK(code >= 1 && code <= 15);
  });
}

TEST("gptq names the position of NaN and infinity in the weight and the column of those in the Hessian") {
  const float bad[] = {std::nanf(""), std::numeric_limits<float>::infinity()};
  for (const float value : bad)
    for (const bool static_groups : {false, true})
      on_every_machine([&](ThreadPool& pool) {
        Weight w = plain_weight(150, 70, 12);
        std::vector<float> products = as_floats(products_of(make_states(100, w.cols, 13, {5}), w.cols));
        for (const int64_t at : {140 * 70 + 5, 33 * 70 + 69}) w.values[static_cast<size_t>(at)] = value;
        store_values(w);
        const auto run = [&] {
          run_gptq(pool, w, products, {.bits = 4, .group_size = 32}, {.static_groups = static_groups});
        };
        CHECK(error_of(run).find("row 33, column 69") != std::string::npos);
        products[static_cast<size_t>(41 * w.cols + 41)] = value;
        CHECK(error_of(run).find("column 41") != std::string::npos);
      });
}

TEST("gptq refuses options that mean nothing") {
  ThreadPool pool(1);
  const Weight w = plain_weight(4, 8, 1);
  std::vector<float> products(64, 0.0f);
  for (size_t i = 0; i < 64; i += 9) products[i] = 1;
  const IntScheme scheme{.bits = 4};
  CHECK(error_of([&] { run_gptq(pool, w, products, scheme, {.damping = -1}); }).find("damping") == 0);
  CHECK(error_of([&] { run_gptq(pool, w, products, scheme, {.damping = std::nan("")}); }).find("damping") ==
        0);
  CHECK(error_of([&] { run_gptq(pool, w, products, scheme, {.block_size = 0}); }).find("blockSize") == 0);
  CHECK(error_of([&] { run_gptq(pool, w, products, scheme, {}, 0); }).find("hessian") == 0);
  CHECK_THROWS(Error, run_gptq(pool, w, products, {.bits = 16}, {}));
}

TEST("gptq of a weight near the ends of float32 stays within its codes") {
  for (const float scale : {1e38f, 1e-38f, 1e-44f}) {
    Weight w = plain_weight(20, 140, 14);
    for (float& value : w.values) value = std::clamp(value * 20, -3.0f, 3.0f) * scale;
    store_values(w);
    const std::vector<float> products = as_floats(products_of(make_states(30, w.cols, 15), w.cols));
    on_every_machine([&](ThreadPool& pool) {
      for (const bool symmetric : {true, false}) {
        const GptqResult actual =
            run_gptq(pool, w, products, {.bits = 3, .symmetric = symmetric, .group_size = 32}, {});
        for (const int32_t code : actual.codes) CHECK(code >= (symmetric ? 1 : 0) && code <= 7);
        for (const float s : actual.scales) CHECK(s > 0 && std::isfinite(s));
      }
    });
  }
}

TEST("gptq of several weights, also of one Hessian, gives what it gives for each alone") {
  // Of which products each weight is.
  constexpr size_t kProducts[] = {0, 1, 1, 3, 1};
  std::vector<Weight> weights;
  std::vector<std::vector<float>> products;
  for (uint32_t i = 0; i < 5; ++i) {
    weights.push_back(plain_weight(33, 96, i));
    products.push_back(as_floats(products_of(make_states(10 + 50 * static_cast<int64_t>(i), 96, i), 96)));
  }
  const IntScheme scheme{.bits = 4, .symmetric = false, .group_size = 32};
  on_every_machine([&](ThreadPool& pool) {
    std::vector<std::vector<uint8_t>> packed(5, std::vector<uint8_t>(33 * 48, 0xa5));
    std::vector<std::vector<float>> scales(5, std::vector<float>(33 * 3));
    std::vector<std::vector<int32_t>> zeros(5, std::vector<int32_t>(33 * 3));
    std::vector<GptqProblem> problems;
    for (size_t i = 0; i < 5; ++i)
      problems.push_back({{weights[i].view(), products[kProducts[i]].data(), 2},
                          {packed[i].data(), scales[i].data(), zeros[i].data()},
                          nullptr});
    const std::vector<GptqReport> reports =
        quantize_gptq(pool, std::span<const GptqProblem>(problems), scheme, {}, scratch);
    for (size_t i = 0; i < 5; ++i) {
      const GptqResult alone = run_gptq(pool, weights[i], products[kProducts[i]], scheme, {});
      std::vector<int32_t> codes(33 * 96);
      unpack_bits(pool, packed[i].data(), 48, 4, 0,
                  {reinterpret_cast<std::byte*>(codes.data()), DType::int32, 33, 96, 96, 1});
      CHECK(codes == alone.codes);
      CHECK(scales[i] == alone.scales);
      CHECK(zeros[i] == alone.zeros);
      CHECK_EQ(reports[i].error, alone.report.error);
    }
  });
}

TEST("outer products of small integers are exact, and the Hessian is their mean in both triangles") {
  for (const test::Shape shape : {test::Shape{1, 1}, {3, 17}, {129, 65}, {300, 130}, {0, 5}, {5, 0}})
    for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
      for (const bool transposed : {false, true}) {
        Weight x{shape.rows, shape.cols, {}, dtype, transposed, {}};
        for (int64_t i = 0; i < shape.rows * shape.cols; ++i)
          x.values.push_back(static_cast<float>(i * 37 % 19 - 9));
        store_values(x);
        const Square expected = products_of(x.values, x.cols);
        on_every_machine([&](ThreadPool& pool) {
          std::vector<float> products(expected.size(), 3.0f);
          add_outer_products(pool, x.view(), products.data(), scratch);
          for (int64_t i = 0; i < x.cols; ++i)
            for (int64_t j = i; j < x.cols; ++j) {
              const auto at = static_cast<size_t>(i * x.cols + j);
              CHECK_EQ(static_cast<double>(products[at]), expected[at] + 3);
            }
          std::vector<float> hessian(expected.size(), std::nanf(""));
          hessian_of(pool, products.data(), x.cols, 4, hessian.data());
          for (int64_t i = 0; i < x.cols; ++i)
            for (int64_t j = 0; j < x.cols; ++j)
              CHECK_EQ(static_cast<double>(hessian[static_cast<size_t>(i * x.cols + j)]),
                       (expected[static_cast<size_t>(i * x.cols + j)] + 3) / 2);
        });
      }
}

TEST("the error of an output is tr((A - B) P (A - B)^T) for weights of any dtype and layout") {
  for (const test::Shape shape : {test::Shape{1, 1}, {3, 17}, {600, 65}, {20, 130}, {0, 5}, {5, 0}})
    for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
      const Weight a = make_weight(shape.rows, shape.cols, dtype, shape.cols % 2 == 0);
      Weight b = make_weight(shape.rows, shape.cols, DType::float32, shape.cols % 2 == 1);
      for (size_t i = 0; i < b.values.size(); ++i) b.values[i] = 0.9f * a.values[i] + 0.01f;
      store_values(b);
      const Square products = products_of(make_states(3 * shape.cols, shape.cols, 5), shape.cols);
      const std::vector<float> floats = as_floats(products);
      const std::vector<double> lost = [&] {
        std::vector<double> d(a.values.size());
        for (size_t i = 0; i < d.size(); ++i) d[i] = static_cast<double>(a.values[i]) - b.values[i];
        return d;
      }();
      on_every_machine([&](ThreadPool& pool) {
        const ConstMatrix other = b.view();
        const double between = output_error(pool, a.view(), &other, floats.data(), scratch);
        const double whole = output_error(pool, a.view(), nullptr, floats.data(), scratch);
        const double eps = 0x1p-23 * std::sqrt(static_cast<double>(shape.cols)) + 1e-7;
        CHECK(std::abs(between - energy(lost, products, shape.cols)) <=
              16 * eps * energy(magnitudes(lost), magnitudes(products), shape.cols));
        CHECK(std::abs(whole - energy(a.values, products, shape.cols)) <=
              16 * eps * energy(magnitudes(a.values), magnitudes(products), shape.cols));
      });
    }
}

TEST(
    "outer products of small integers are exact over several passes of states and with squares of many "
    "columns") {
  for (const test::Shape shape : {test::Shape{4300, 50}, {2113, 97}, {30, 1250}})
    for (const DType dtype : {DType::float32, DType::bfloat16}) {
      Weight x{shape.rows, shape.cols, {}, dtype, false, {}};
      for (int64_t i = 0; i < shape.rows * shape.cols; ++i)
        x.values.push_back(static_cast<float>(i * 37 % 19 - 9));
      store_values(x);
      const Square expected = products_of(x.values, x.cols);
      on_every_machine([&](ThreadPool& pool) {
        std::vector<float> products(expected.size(), 0.0f);
        add_outer_products(pool, x.view(), products.data(), scratch);
        int64_t wrong = 0;
        for (int64_t i = 0; i < x.cols; ++i)
          for (int64_t j = i; j < x.cols; ++j) {
            const auto at = static_cast<size_t>(i * x.cols + j);
            wrong += static_cast<double>(products[at]) != expected[at];
          }
        CHECK_EQ(wrong, 0);
      });
    }
}

TEST("sums are added with a factor, exactly for small integers") {
  for (const int64_t count : {0, 1, 16384, 40000})
    on_every_machine([&](ThreadPool& pool) {
      std::vector<float> from(static_cast<size_t>(count));
      std::vector<float> to(static_cast<size_t>(count));
      for (size_t i = 0; i < from.size(); ++i) {
        from[i] = static_cast<float>(i % 31) - 15;
        to[i] = static_cast<float>(i % 7);
      }
      add_scaled(pool, from.data(), 0.25f, count, to.data());
      for (size_t i = 0; i < from.size(); ++i)
        CHECK_EQ(to[i], static_cast<float>(i % 7) + 0.25f * (static_cast<float>(i % 31) - 15));
    });
}

TEST("outer products carry NaN and infinity of the states to the diagonal") {
  for (const float value : {std::nanf(""), std::numeric_limits<float>::infinity()})
    on_every_machine([&](ThreadPool& pool) {
      const int64_t in = 70;
      std::vector<float> x = make_states(50, in, 3);
      x[20 * 70 + 33] = value;
      std::vector<float> products(70 * 70);
      add_outer_products(pool, {reinterpret_cast<const std::byte*>(x.data()), DType::float32, 50, in, in, 1},
                         products.data(), scratch);
      for (size_t c = 0; c < 70; ++c) CHECK_EQ(std::isfinite(products[c * 71]), c != 33);
    });
}

}  // namespace
