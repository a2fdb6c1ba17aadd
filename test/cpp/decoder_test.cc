#include "ops/decoder/decoder.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/error.h"
#include "quantize_test.h"

namespace {

using namespace quantaria;
using namespace quantaria::ops;
using namespace quantaria::test;

constexpr double kEps = std::numeric_limits<float>::epsilon();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// float32 rows, poisoned until they are written.
struct Rows {
  Rows(int64_t r, int64_t c) : rows(r), cols(c), values(static_cast<size_t>(r * c), kNan) {}
  Rows(int64_t r, int64_t c, uint32_t seed) : Rows(r, c) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    for (float& value : values) value = normal(random);
  }
  Matrix view() { return {reinterpret_cast<std::byte*>(values.data()), DType::float32, rows, cols, cols, 1}; }
  double at(int64_t r, int64_t c) const {
    return static_cast<double>(values[static_cast<size_t>(r * cols + c)]);
  }

  int64_t rows, cols;
  std::vector<float> values;
};

/// Every value within `bound(r, c)` of the expected one, with the worst place in the message.
template <class Expected, class Bound>
void check_near(const Rows& came, const Expected& expected, const Bound& bound) {
  double worst = 0;
  std::string where;
  for (int64_t r = 0; r < came.rows; ++r)
    for (int64_t c = 0; c < came.cols; ++c) {
      const double error = std::abs(came.at(r, c) - expected(r, c)) / bound(r, c);
      if (error <= worst) continue;
      worst = error;
      where = "[" + show(r) + ", " + show(c) + "] is " + show(came.at(r, c)) + ", expected " +
              show(expected(r, c)) + ", " + show(error) + " of the bound";
    }
  if (!(worst <= 1)) report(__FILE__, __LINE__, where);
}

/// All values are numbers, as a comparison with NaN would let them pass.
void check_written(const Rows& came) {
  CHECK(std::none_of(came.values.begin(), came.values.end(), [](float x) { return std::isnan(x); }));
}

TEST("decoder: the norm divides by the root of the mean square, to rounding, on any machine") {
  for (const int64_t n : {1, 7, 16, 33, 5000}) {
    Rows x(19, n, 1);
    Rows gain(1, n, 2);
    std::vector<double> roots;
    for (int64_t r = 0; r < x.rows; ++r) {
      double squares = 0;
      for (int64_t c = 0; c < n; ++c) squares += x.at(r, c) * x.at(r, c);
      roots.push_back(std::sqrt(squares / static_cast<double>(n) + static_cast<double>(1e-5f)));
    }
    on_every_machine([&](ThreadPool& pool) {
      Rows y(x.rows, n);
      rms_norm(pool, x.view(), gain.view(), 1e-5f, y.view());
      check_written(y);
      const auto expected = [&](int64_t r, int64_t c) {
        return x.at(r, c) * gain.at(0, c) / roots[static_cast<size_t>(r)];
      };
      // Sums of squares lose eps sqrt(n) / 2 at most; the factor and two products are rounded.
      const double relative = kEps * (3 + std::sqrt(static_cast<double>(n)));
      check_near(y, expected,
                 [&](int64_t r, int64_t c) { return relative * std::abs(expected(r, c)) + 1e-30; });
    });
  }
}

TEST("decoder: rotation turns each pair of a head by its position and leaves the rest") {
  for (const bool interleaved : {false, true}) {
    const Rotary rotary{3, 10, 2, 6, interleaved, 4, 5};
    Rows x(9, 30, 3);
    Rows cosines(9, 3, 4);
    Rows sines(9, 3, 5);
    on_every_machine([&](ThreadPool& pool) {
      Rows y(9, 30);
      rotate(pool, x.view(), cosines.values.data(), sines.values.data(), rotary, y.view());
      const auto expected = [&](int64_t r, int64_t c) {
        const int64_t e = c % 10 - 2;
        if (e < 0 || e >= 6) return x.at(r, c);
        const int64_t pair = interleaved ? e / 2 : e % 3;
        const bool second = interleaved ? e % 2 == 1 : e >= 3;
        const int64_t apart = interleaved ? 1 : 3;
        const int64_t position = 5 + r % 4;
        const double other = x.at(r, second ? c - apart : c + apart) * sines.at(position, pair);
        return x.at(r, c) * cosines.at(position, pair) + (second ? other : -other);
      };
      check_written(y);
      check_near(y, expected, [](int64_t, int64_t) { return 16 * 2 * kEps; });
    });
  }
}

/// Softmax attention in float64, by its definition.
struct PlainAttention {
  const Attention& a;
  const Rows &q, &k, &v;
  /// The value, and the sum of |p| |v| that bounds its error.
  std::pair<double, double> operator()(int64_t r, int64_t c) const {
    const int64_t head = c / a.value_dim;
    const int64_t kv_head = head / (a.heads / a.kv_heads);
    const int64_t position = a.keys - a.queries + r % a.queries;
    const int64_t base = r / a.queries * a.keys;
    const int64_t from = a.window == 0 ? 0 : std::max<int64_t>(0, position + 1 - a.window);
    std::vector<double> scores;
    for (int64_t s = from; s <= position; ++s) {
      double dot = 0;
      for (int64_t i = 0; i < a.key_dim; ++i)
        dot += q.at(r, head * a.key_dim + i) * k.at(base + s, kv_head * a.key_dim + i);
      scores.push_back(dot * static_cast<double>(a.scale));
    }
    const double most = *std::max_element(scores.begin(), scores.end());
    double sum = 0;
    double value = 0;
    double magnitude = 0;
    for (size_t s = 0; s < scores.size(); ++s) {
      const double p = std::exp(scores[s] - most);
      const double x = v.at(base + from + static_cast<int64_t>(s), kv_head * a.value_dim + c % a.value_dim);
      sum += p;
      value += p * x;
      magnitude += p * std::abs(x);
    }
    return {value / sum, magnitude / sum};
  }
};

constexpr Attention kAttentions[] = {
    {1, 1, 1, 1, 1, 4, 4, 0.5f, 0},    {2, 70, 70, 4, 2, 8, 8, 0.35f, 0},   {3, 5, 21, 6, 2, 12, 7, 0.3f, 0},
    {1, 1, 40, 3, 3, 24, 16, 0.2f, 0}, {2, 33, 33, 2, 1, 17, 33, 0.25f, 5}, {1, 9, 80, 2, 2, 8, 8, 0.35f, 16},
};

TEST("decoder: attention is that of its definition, to rounding, and the same bits for any thread count") {
  for (const Attention& a : kAttentions) {
    Rows q(a.sequences * a.queries, a.heads * a.key_dim, 6);
    Rows k(a.sequences * a.keys, a.kv_heads * a.key_dim, 7);
    Rows v(a.sequences * a.keys, a.kv_heads * a.value_dim, 8);
    const PlainAttention expected{a, q, k, v};
    std::vector<float> of_one_thread;
    on_every_machine([&](ThreadPool& pool) {
      Rows y(q.rows, a.heads * a.value_dim);
      attend(pool, q.view(), k.view(), v.view(), a, y.view());
      check_written(y);
      // A score of up to 6 in float32 is some eps * 6 * sqrt(dim) off, which is the relative error of exp of
      // it.
      const double relative = kEps * (16 + 6 * std::sqrt(static_cast<double>(a.key_dim)));
      check_near(
          y, [&](int64_t r, int64_t c) { return expected(r, c).first; },
          [&](int64_t r, int64_t c) { return relative * expected(r, c).second; });
      if (pool.threads() == 1) of_one_thread = y.values;
      CHECK(bits_of_all(y.values) == bits_of_all(of_one_thread));
    });
  }
}

TEST("decoder: a query alone, with all keys before it, has the bits that it has in the whole sequence") {
  const Attention whole{1, 75, 75, 4, 2, 16, 24, 0.25f, 0};
  Rows q(75, 64, 9);
  Rows k(75, 32, 10);
  Rows v(75, 48, 11);
  on_every_machine([&](ThreadPool& pool) {
    Rows y(75, 96);
    attend(pool, q.view(), k.view(), v.view(), whole, y.view());
    for (const int64_t position : {0, 1, 63, 64, 74}) {
      Attention one = whole;
      one.queries = 1;
      one.keys = position + 1;
      const auto part = [&](Rows& rows, int64_t first, int64_t count) {
        Matrix view = rows.view();
        view.data += first * rows.cols * 4;
        view.rows = count;
        return view;
      };
      Rows alone(1, 96);
      attend(pool, part(q, position, 1), part(k, 0, position + 1), part(v, 0, position + 1), one,
             alone.view());
      const auto from = y.values.begin() + position * 96;
      CHECK(bits_of_all(alone.values) == bits_of_all(std::vector<float>(from, from + 96)));
    }
  });
}

TEST("decoder: losses, divergence, agreement and errors are those of float64") {
  for (const int64_t n : {1, 5, 16, 100, 9001}) {
    Rows logits(7, n, 12);
    Rows baseline(7, n, 13);
    for (float& value : logits.values) value *= 5;
    const std::vector<int32_t> targets(7, static_cast<int32_t>(n / 2));
    on_every_machine([&](ThreadPool& pool) {
      std::vector<TokenScore> scores(7, {kNan, kNan, kNan, kNan, kNan});
      score_tokens(pool, logits.values.data(), baseline.values.data(), 7, n, targets.data(), scores.data());
      for (int64_t r = 0; r < 7; ++r) {
        const auto log_sum = [&](const Rows& rows) {
          double sum = 0;
          for (int64_t c = 0; c < n; ++c) sum += std::exp(rows.at(r, c));
          return std::log(sum);
        };
        const auto best = [&](const Rows& rows) {
          const auto from = rows.values.begin() + r * n;
          return std::max_element(from, from + n) - from;
        };
        const double model_sum = log_sum(logits);
        const double baseline_sum = log_sum(baseline);
        double divergence = 0;
        double error = 0;
        double reference = 0;
        for (int64_t c = 0; c < n; ++c) {
          const double of_baseline = baseline.at(r, c) - baseline_sum;
          divergence += std::exp(of_baseline) * (of_baseline - (logits.at(r, c) - model_sum));
          error += std::pow(logits.at(r, c) - baseline.at(r, c), 2);
          reference += std::pow(baseline.at(r, c), 2);
        }
        const TokenScore& score = scores[static_cast<size_t>(r)];
        const auto near = [](float came, double expected) {
          return std::abs(static_cast<double>(came) - expected) <= 1e-5 * (1 + std::abs(expected));
        };
        CHECK(near(score.loss, model_sum - logits.at(r, n / 2)));
        CHECK(near(score.divergence, divergence));
        CHECK(near(score.error, error));
        CHECK(near(score.reference, reference));
        CHECK_EQ(score.agree, best(logits) == best(baseline) ? 1.0f : 0.0f);
      }
    });
  }
}

TEST("decoder: a NaN among logits is a loss of NaN, and ids outside of the vocabulary are named") {
  on_every_machine([](ThreadPool& pool) {
    Rows logits(3, 20, 14);
    logits.values[25] = kNan;
    const std::vector<int32_t> targets{0, 1, 19};
    std::vector<TokenScore> scores(3);
    score_tokens(pool, logits.values.data(), nullptr, 3, 20, targets.data(), scores.data());
    CHECK(!std::isnan(scores[0].loss) && std::isnan(scores[1].loss) && !std::isnan(scores[2].loss));
    for (const int32_t wrong : {-1, 20}) {
      const std::vector<int32_t> bad{0, wrong, 0};
      CHECK_THROWS(Error,
                   score_tokens(pool, logits.values.data(), nullptr, 3, 20, bad.data(), scores.data()));
      Rows y(3, 20);
      CHECK_THROWS(Error, embed(pool, logits.view(), bad.data(), y.view()));
    }
  });
}

TEST("decoder: gated sums, and the table's rows bit for bit") {
  on_every_machine([](ThreadPool& pool) {
    Rows a(21, 13, 15);
    Rows b(21, 13, 16);
    Rows gates(21, 1, 17);
    Rows y(21, 13);
    add(pool, a.view(), b.view(), nullptr, y.view());
    for (size_t i = 0; i < y.values.size(); ++i) CHECK_EQ(y.values[i], a.values[i] + b.values[i]);
    const ConstMatrix logits = gates.view();
    add(pool, a.view(), b.view(), &logits, y.view());
    check_near(
        y, [&](int64_t r, int64_t c) { return a.at(r, c) + b.at(r, c) / (1 + std::exp(-gates.at(r, 0))); },
        [](int64_t, int64_t) { return 8 * 4 * kEps; });
    const std::vector<int32_t> ids{20, 0, 7};
    Rows rows(3, 13);
    embed(pool, a.view(), ids.data(), rows.view());
    for (int64_t r = 0; r < 3; ++r)
      for (int64_t c = 0; c < 13; ++c) CHECK_EQ(rows.at(r, c), a.at(ids[static_cast<size_t>(r)], c));
  });
}

}  // namespace
