#include "ops/scaling/scaling.h"

#include <cmath>
#include <vector>

#include "check.h"
#include "quantize_test.h"

namespace {

using namespace quantaria;
using namespace quantaria::ops;
using namespace quantaria::test;

/// body(pool, weight) for weights of every dtype and layout, also empty ones.
template <class Body>
void for_each_weight(const Body& body) {
  for (const test::Shape shape : {test::Shape{1, 1}, {3, 17}, {600, 65}, {20, 300}, {0, 5}, {5, 0}})
    for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16}) {
      const Weight w = make_weight(shape.rows, shape.cols, dtype, shape.cols % 2 == 0);
      on_every_machine([&](ThreadPool& pool) { body(pool, w); });
    }
}

float value(const Weight& w, int64_t r, int64_t c) { return w.values[static_cast<size_t>(r * w.cols + c)]; }

TEST("magnitudes of columns: maxima exactly, sums to float32's rounding, added to what is there") {
  for_each_weight([](ThreadPool& pool, const Weight& w) {
    std::vector<float> maxima(static_cast<size_t>(w.cols), 0.25f);
    std::vector<float> sums(static_cast<size_t>(w.cols), 3.0f);
    column_magnitudes(pool, w.view(), maxima.data(), sums.data());
    for (int64_t c = 0; c < w.cols; ++c) {
      float most = 0.25f;
      double sum = 0;
      for (int64_t r = 0; r < w.rows; ++r) {
        most = std::max(most, std::fabs(value(w, r, c)));
        sum += static_cast<double>(std::fabs(value(w, r, c)));
      }
      CHECK_EQ(maxima[static_cast<size_t>(c)], most);
      CHECK(std::abs(static_cast<double>(sums[static_cast<size_t>(c)]) - 3 - sum) <= (sum + 3) * 0x1p-22);
    }
  });
}

TEST("scaled matrices are products rounded once a factor") {
  for_each_weight([](ThreadPool& pool, const Weight& w) {
    std::vector<float> rows(static_cast<size_t>(w.rows));
    std::vector<float> columns(static_cast<size_t>(w.cols));
    for (size_t r = 0; r < rows.size(); ++r) rows[r] = 0.3f + 0.1f * static_cast<float>(r % 11);
    for (size_t c = 0; c < columns.size(); ++c) columns[c] = 1.7f - 0.1f * static_cast<float>(c % 13);
    for (const bool by_rows : {false, true})
      for (const bool by_columns : {false, true}) {
        std::vector<float> to(w.values.size(), std::nanf(""));
        scale_matrix(pool, w.view(), by_rows ? rows.data() : nullptr, by_columns ? columns.data() : nullptr,
                     to.data());
        for (int64_t r = 0; r < w.rows; ++r)
          for (int64_t c = 0; c < w.cols; ++c) {
            float expected = value(w, r, c);
            if (by_rows) expected *= rows[static_cast<size_t>(r)];
            if (by_columns) expected *= columns[static_cast<size_t>(c)];
            CHECK_EQ(to[static_cast<size_t>(r * w.cols + c)], expected);
          }
      }
  });
}

TEST("activations of 8 bits with one scale: the nearest of 256 multiples of it, ties to even, NaN kept") {
  for_each_weight([](ThreadPool& pool, const Weight& w) {
    for (const float scale : {0.01f, 0.5f, 3.0f}) {
      std::vector<float> to(w.values.size(), std::nanf(""));
      round_to_scale(pool, w.view(), scale, to.data());
      for (size_t i = 0; i < to.size(); ++i) {
        const double code = std::nearbyint(static_cast<double>(w.values[i] / scale));
        CHECK_EQ(to[i], static_cast<float>(std::clamp(code, -128.0, 127.0)) * scale);
      }
    }
  });
  Weight x = make_weight(1, 6, DType::float32, false);
  x.values = {0.5f, 1.5f, -2.5f, 1e30f, -INFINITY, std::nanf("")};
  store_values(x);
  on_every_machine([&](ThreadPool& pool) {
    std::vector<float> to(6, 0.0f);
    round_to_scale(pool, x.view(), 1, to.data());
    const std::vector<float> expected{0, 2, -2, 127, -128};
    for (size_t i = 0; i < expected.size(); ++i) CHECK_EQ(to[i], expected[i]);
    CHECK(std::isnan(to[5]));
  });
}

TEST("groups are clamped to their share of their largest magnitude, the short last one too") {
  for_each_weight([](ThreadPool& pool, const Weight& w) {
    for (const int64_t group : {1, 16, 1000}) {
      const int64_t groups = (w.cols + group - 1) / group;
      std::vector<float> ratios(static_cast<size_t>(w.rows * groups));
      for (size_t i = 0; i < ratios.size(); ++i) ratios[i] = 1.0f - 0.05f * static_cast<float>(i % 10);
      std::vector<float> to(w.values.size(), std::nanf(""));
      clamp_groups(pool, w.view(), group, ratios.data(), to.data());
      for (int64_t r = 0; r < w.rows; ++r)
        for (int64_t c = 0; c < w.cols; ++c) {
          float most = 0;
          for (int64_t i = c / group * group; i < std::min(w.cols, (c / group + 1) * group); ++i)
            most = std::max(most, std::fabs(value(w, r, i)));
          const float bound = ratios[static_cast<size_t>(r * groups + c / group)] * most;
          CHECK_EQ(to[static_cast<size_t>(r * w.cols + c)],
                   std::min(bound, std::max(-bound, value(w, r, c))));
        }
    }
  });
}

TEST("errors of groups are d^T P d of the diagonal blocks") {
  for_each_weight([](ThreadPool& pool, const Weight& w) {
    Weight v = make_weight(w.rows, w.cols, DType::float32, false);
    for (size_t i = 0; i < v.values.size(); ++i) v.values[i] = 0.9f * w.values[i] + 0.01f;
    store_values(v);
    std::vector<float> products(static_cast<size_t>(w.cols * w.cols), std::nanf(""));
    for (int64_t i = 0; i < w.cols; ++i)
      for (int64_t j = i; j < w.cols; ++j)
        products[static_cast<size_t>(i * w.cols + j)] =
            1.0f / static_cast<float>(1 + j - i) + (i == j ? 2 : 0);
    for (const int64_t group : {1, 16, 1000}) {
      const int64_t groups = (w.cols + group - 1) / group;
      std::vector<float> errors(static_cast<size_t>(w.rows * groups), std::nanf(""));
      group_errors(pool, w.view(), v.view(), products.data(), group, errors.data());
      for (int64_t r = 0; r < w.rows; ++r)
        for (int64_t g = 0; g < groups; ++g) {
          double sum = 0;
          double bound = 0;
          for (int64_t i = g * group; i < std::min(w.cols, (g + 1) * group); ++i)
            for (int64_t j = g * group; j < std::min(w.cols, (g + 1) * group); ++j) {
              const double p = static_cast<double>(
                  products[static_cast<size_t>(std::min(i, j) * w.cols + std::max(i, j))]);
              const double term = static_cast<double>(value(w, r, i) - value(v, r, i)) * p *
                                  static_cast<double>(value(w, r, j) - value(v, r, j));
              sum += term;
              bound += std::abs(term);
            }
          CHECK(std::abs(static_cast<double>(errors[static_cast<size_t>(r * groups + g)]) - sum) <=
                bound * 16 * 0x1p-23 * std::sqrt(static_cast<double>(group)));
        }
    }
  });
}

}  // namespace
