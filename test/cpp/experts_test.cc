#include "ops/moe/experts.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "dequant_matmul_test.h"
#include "ops/copy/convert.h"
#include "ops/gemm/dense_factor.h"
#include "ops/moe/route.h"

using namespace quantaria;
using namespace quantaria::test;
using ops::Operand;

namespace {

/// The values of a matrix [out, in] and what multiplies by it: dense of a dtype, stored either way round, or
/// quantized.
struct Layer {
  int64_t out, in;
  std::vector<float> values;
  std::vector<std::byte> dense;
  std::unique_ptr<StoredFactor> stored;
  DType dtype = DType::float32;
  bool turned = false;

  std::unique_ptr<ops::Factor> factor(bool bfloat16) const {
    if (stored != nullptr) return std::move(stored->factor);
    return std::make_unique<ops::DenseFactor>(
        ConstMatrix{dense.data(), dtype, in, out, turned ? out : 1, turned ? 1 : in}, bfloat16);
  }
};

Layer dense_layer(int64_t out, int64_t in, DType dtype, bool turned, uint32_t seed) {
  Layer layer{out, in, random_activations(out, in, seed), {}, nullptr, dtype, turned};
  layer.dense.resize(static_cast<size_t>(out * in * size_of(dtype)));
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) {
      float& value = layer.values[static_cast<size_t>(r * in + c)];
      std::byte* const to = layer.dense.data() + (turned ? c * out + r : r * in + c) * size_of(dtype);
      ops::convert_row(DType::float32, reinterpret_cast<const std::byte*>(&value), dtype, to, 1);
      ops::convert_row(dtype, to, DType::float32, reinterpret_cast<std::byte*>(&value), 1);
    }
  return layer;
}

Layer quantized_layer(ThreadPool& pool, const QuantizedWeight& w, Operand operand) {
  return {w.out, w.in, w.values, {}, std::make_unique<StoredFactor>(pool, w, operand)};
}

/// gate, up and down of expert e: in turn dense, quantized alike, and of kinds whose kernels take activations
/// in different forms.
std::vector<Layer> expert(ThreadPool& pool, int64_t e, int64_t hidden, int64_t inter, bool bfloat16) {
  const auto seed = static_cast<uint32_t>(10 * e + 1);
  const Operand operand = bfloat16 ? Operand::bfloat16 : Operand::float32;
  const auto int4 = [&](int64_t out, int64_t in, uint32_t s) {
    ops::IntScheme scheme;
    scheme.bits = 4;
    scheme.symmetric = false;
    scheme.granularity = ops::Granularity::group;
    scheme.group_size = 32;
    return quantized_layer(pool, int_weight(scheme, out, in, random_codes(s, 4), s), operand);
  };
  const auto nf4 = [&](int64_t out, int64_t in, uint32_t s) {
    return quantized_layer(pool, codebook_weight({ops::Codebook::nf4, 32, false}, out, in, all_codes(4), s),
                           operand);
  };
  std::vector<Layer> layers;
  const auto add = [&](Layer gate, Layer up, Layer down) {
    layers.push_back(std::move(gate));
    layers.push_back(std::move(up));
    layers.push_back(std::move(down));
  };
  if (e % 3 == 0)
    add(dense_layer(inter, hidden, DType::bfloat16, false, seed),
        dense_layer(inter, hidden, DType::bfloat16, true, seed + 1),
        dense_layer(hidden, inter, DType::float32, false, seed + 2));
  else if (e % 3 == 1)
    add(int4(inter, hidden, seed), int4(inter, hidden, seed + 1), int4(hidden, inter, seed + 2));
  else
    add(int4(inter, hidden, seed), nf4(inter, hidden, seed + 1),
        dense_layer(hidden, inter, DType::float16, true, seed + 2));
  return layers;
}

/// Indices [tokens, top_k] with weights, and their slots by expert.
struct Routing {
  int64_t tokens, top_k, experts;
  std::vector<int32_t> indices, counts, offsets, order;
  std::vector<float> weights;

  Routing(int64_t t, int64_t k, int64_t e, std::vector<int32_t> chosen)
      : tokens(t),
        top_k(k),
        experts(e),
        indices(std::move(chosen)),
        counts(static_cast<size_t>(e)),
        offsets(static_cast<size_t>(e + 1)),
        order(indices.size()),
        weights(random_activations(t, k, 9)) {
    ops::sort_slots(indices.data(), t * k, std::max<int64_t>(1, k), e,
                    {counts.data(), offsets.data(), order.data()});
  }
  ops::Slots slots() const { return {tokens, top_k, experts, order.data(), offsets.data(), weights.data()}; }
};

/// Distinct experts a token: the first `top_k` of a list that starts elsewhere for each token. Expert 1 gets
/// nothing, expert 2 one token only, where there are others.
Routing uneven(int64_t tokens, int64_t top_k, int64_t experts) {
  std::vector<int32_t> indices;
  for (int64_t t = 0; t < tokens; ++t) {
    std::vector<int32_t> free;
    for (int64_t e = 0; e < experts; ++e)
      if (e != 1 && (e != 2 || t == tokens / 2)) free.push_back(static_cast<int32_t>(e));
    std::rotate(free.begin(), free.begin() + t % static_cast<int64_t>(free.size()), free.end());
    if (t == tokens / 2) {
      std::erase(free, 2);
      free.insert(free.begin(), 2);
    }
    indices.insert(indices.end(), free.begin(), free.begin() + top_k);
  }
  return {tokens, top_k, experts, indices};
}

std::shared_ptr<Storage> poisoned(int64_t bytes) {
  auto memory = std::make_shared<std::vector<float>>(static_cast<size_t>(bytes / 4), NAN);
  auto* const data = reinterpret_cast<std::byte*>(memory->data());
  return std::make_shared<Storage>(std::move(memory), data, bytes, true);
}

struct Output {
  std::vector<float> values;  // [tokens, hidden]
  std::vector<int> asked;     // how often for each expert's factors
};

Output run(ThreadPool& pool, const std::vector<float>& x, DType x_dtype, int64_t hidden, int64_t inter,
           const Routing& routing, bool bfloat16, DType y_dtype) {
  constexpr int64_t kGap = 2;
  const int64_t tokens = routing.tokens;
  std::vector<std::byte> input(x.size() * static_cast<size_t>(size_of(x_dtype)));
  ops::convert_row(DType::float32, reinterpret_cast<const std::byte*>(x.data()), x_dtype, input.data(),
                   tokens * hidden);
  const int64_t stride = hidden + kGap;
  std::vector<std::byte> y(static_cast<size_t>(tokens * stride * size_of(y_dtype)), std::byte{0xa5});
  Output to{std::vector<float>(static_cast<size_t>(tokens * hidden)),
            std::vector<int>(static_cast<size_t>(routing.experts))};
  std::vector<std::vector<Layer>> layers(static_cast<size_t>(routing.experts));
  ops::experts(pool, {input.data(), x_dtype, tokens, hidden, hidden, 1}, inter, routing.slots(),
               [&](int64_t e) {
                 ++to.asked[static_cast<size_t>(e)];
                 std::vector<Layer>& own = layers[static_cast<size_t>(e)];
                 own = expert(pool, e, hidden, inter, bfloat16);
                 return ops::ExpertFactors{own[0].factor(bfloat16), own[1].factor(bfloat16),
                                           own[2].factor(bfloat16)};
               },
               poisoned, {y.data(), y_dtype, tokens, hidden, stride, 1});
  for (int64_t t = 0; t < tokens; ++t) {
    const std::byte* const row = y.data() + t * stride * size_of(y_dtype);
    ops::convert_row(y_dtype, row, DType::float32,
                     reinterpret_cast<std::byte*>(to.values.data() + t * hidden), hidden);
    CHECK(std::all_of(row + hidden * size_of(y_dtype), row + stride * size_of(y_dtype),
                      [](std::byte b) { return b == std::byte{0xa5}; }));
  }
  return to;
}

/// A value, and how far a computation in float32 may be from it.
struct Bounded {
  double value = 0;
  double error = 0;
};

/// row r of a layer times x. Terms move with what they are made of; each product and sum rounds, by sqrt(K)
/// 2^-22 of the terms' magnitude, and with zero points of what is taken off. bfloat16 factors move by 2^-8.
Bounded dot(const Layer& layer, int64_t r, const std::vector<Bounded>& x, bool bfloat16) {
  Bounded sum;
  double magnitude = 0;
  for (int64_t c = 0; c < layer.in; ++c) {
    const auto& [value, error] = x[static_cast<size_t>(c)];
    const double w = layer.values[static_cast<size_t>(r * layer.in + c)];
    sum.value += value * w;
    sum.error += error * std::fabs(w);
    magnitude += (std::fabs(value) + error) * std::max(std::fabs(w), layer.stored ? 15.0 / 10 : 0.0);
  }
  sum.error += magnitude *
               (std::ldexp(std::sqrt(static_cast<double>(layer.in) + 1), -22) + (bfloat16 ? 0x1.01p-7 : 0));
  return sum;
}

std::vector<Bounded> reference(const std::vector<Layer>& layers, const std::vector<Bounded>& x,
                               bool bfloat16) {
  std::vector<Bounded> between;
  for (int64_t i = 0; i < layers[0].out; ++i) {
    const Bounded gate = dot(layers[0], i, x, bfloat16);
    const Bounded up = dot(layers[1], i, x, bfloat16);
    const double silu = gate.value / (1 + std::exp(-gate.value));
    const double silu_error = 1.1 * gate.error + 0x1p-20 * std::fabs(silu);  // its slope is below 1.1
    between.push_back(
        {silu * up.value, silu_error * (std::fabs(up.value) + up.error) + std::fabs(silu) * up.error});
  }
  std::vector<Bounded> y;
  for (int64_t j = 0; j < layers[2].out; ++j) y.push_back(dot(layers[2], j, between, bfloat16));
  return y;
}

/// Every coordinate of y within the bound.
void check(ThreadPool& pool, const std::vector<float>& x, int64_t hidden, int64_t inter,
           const Routing& routing, bool bfloat16, DType y_dtype, const std::vector<float>& y) {
  std::vector<std::vector<Layer>> layers;
  for (int64_t e = 0; e < routing.experts; ++e) layers.push_back(expert(pool, e, hidden, inter, bfloat16));
  const double rounding = y_dtype == DType::float32 ? 0x1p-24 : y_dtype == DType::float16 ? 0x1p-11 : 0x1p-8;
  double worst = 0;
  std::string where;
  for (int64_t t = 0; t < routing.tokens; ++t) {
    std::vector<Bounded> row;
    for (int64_t c = 0; c < hidden; ++c) row.push_back({x[static_cast<size_t>(t * hidden + c)], 0});
    std::vector<Bounded> sum(static_cast<size_t>(hidden));
    for (int64_t k = 0; k < routing.top_k; ++k) {
      const auto slot = static_cast<size_t>(t * routing.top_k + k);
      const std::vector<Bounded> own =
          reference(layers[static_cast<size_t>(routing.indices[slot])], row, bfloat16);
      const double weight = routing.weights[slot];
      for (size_t j = 0; j < sum.size(); ++j) {
        sum[j].value += weight * own[j].value;
        sum[j].error += std::fabs(weight) * (own[j].error + 0x1p-22 * static_cast<double>(routing.top_k) *
                                                                std::fabs(own[j].value));
      }
    }
    for (int64_t j = 0; j < hidden; ++j) {
      const auto& [value, error] = sum[static_cast<size_t>(j)];
      const double bound = error + rounding * (std::fabs(value) + error) + 0x1p-25;
      const double off = std::fabs(double{y[static_cast<size_t>(t * hidden + j)]} - value) / bound;
      if (off <= worst) continue;
      worst = off;
      where = "(" + std::to_string(t) + ", " + std::to_string(j) +
              "): " + show(y[static_cast<size_t>(t * hidden + j)]) + ", expected " + show(value) + " +- " +
              show(bound);
    }
  }
  if (!(worst <= 1))
    report(__FILE__, __LINE__,
           std::to_string(routing.tokens) + " tokens, top " + std::to_string(routing.top_k) + " of " +
               std::to_string(routing.experts) + ", hidden " + std::to_string(hidden) + ", inter " +
               std::to_string(inter) + (bfloat16 ? ", bfloat16" : "") + " at " + where);
}

/// Values that all dtypes hold, small enough for float16 outputs.
std::vector<float> activations(int64_t tokens, int64_t hidden) {
  std::vector<float> x = random_activations(tokens, hidden, 7);
  for (float& value : x) value = std::ldexp(std::nearbyint(value * 8), -6);
  return x;
}

constexpr DType kFloats[] = {DType::float32, DType::float16, DType::bfloat16};

}  // namespace

TEST(
    "experts: odd shapes, experts without tokens and with one, within the bound of float64 at every "
    "coordinate") {
  on_each_isa([&](Isa) {
    ThreadPool one(1);
    ThreadPool three(3);
    int turn = 0;
    for (const int64_t hidden : {1, 33, 70})
      for (const int64_t inter : {1, 17, 48})
        for (const int64_t tokens : {1, 2, 7, 40})
          for (const int64_t top_k : {1, 3}) {
            const Routing routing = uneven(tokens, top_k, 6);
            const std::vector<float> x = activations(tokens, hidden);
            const DType x_dtype = kFloats[turn % 3];
            const DType y_dtype = kFloats[turn / 3 % 3];
            const bool bfloat16 = turn++ % 2 == 1;
            const Output y = run(one, x, x_dtype, hidden, inter, routing, bfloat16, y_dtype);
            check(one, x, hidden, inter, routing, bfloat16, y_dtype, y.values);
            CHECK_EQ(run(three, x, x_dtype, hidden, inter, routing, bfloat16, y_dtype).values, y.values);
            for (size_t e = 0; e < y.asked.size(); ++e) CHECK_EQ(y.asked[e], routing.counts[e] > 0 ? 1 : 0);
            CHECK_EQ(routing.counts[1], 0);
            CHECK_EQ(routing.counts[2], 1);
          }
  });
}

TEST(
    "experts: no tokens write nothing, and no experts a token, no width between and no features leave "
    "zeros") {
  ThreadPool pool(2);
  on_each_isa([&](Isa) {
    for (const bool bfloat16 : {false, true}) {
      CHECK(run(pool, {}, DType::float32, 8, 5, {0, 2, 3, {}}, bfloat16, DType::bfloat16).values.empty());
      const Output none =
          run(pool, activations(3, 8), DType::float32, 8, 5, {3, 0, 4, {}}, bfloat16, DType::float32);
      CHECK_EQ(none.values, std::vector<float>(24));
      CHECK_EQ(none.asked, std::vector<int>(4));
      const Routing routing(3, 1, 4, {0, 1, 3});
      CHECK_EQ(run(pool, activations(3, 8), DType::bfloat16, 8, 0, routing, bfloat16, DType::float32).values,
               std::vector<float>(24));
      CHECK(run(pool, {}, DType::float32, 0, 5, routing, bfloat16, DType::float32).values.empty());
    }
  });
}

TEST("experts: tokens whose values between the products exceed what may lie there go through in parts") {
  ThreadPool pool(2);
  const int64_t tokens = 3100;
  const int64_t inter = 1800;  // 3100 * 3 * 1801 values, over 2^24 but under 2^25
  const Routing routing = uneven(tokens, 3, 6);
  const std::vector<float> x = activations(tokens, 1);
  const Output y = run(pool, x, DType::float32, 1, inter, routing, false, DType::float32);
  for (size_t e = 0; e < y.asked.size(); ++e) CHECK_EQ(y.asked[e], routing.counts[e] > 0 ? 1 : 0);
  // One feature: tokens of one value and one list of experts differ in the weights alone, so a few tokens
  // about the border and the ends stand for all.
  for (const int64_t t : {int64_t{0}, int64_t{3104}, tokens - 1, tokens / 2, tokens / 2 + 7}) {
    if (t >= tokens) continue;
    const auto first = routing.indices.begin() + t * 3;
    Routing own(1, 3, 6, {first, first + 3});
    std::copy_n(routing.weights.begin() + t * 3, 3, own.weights.begin());
    check(pool, {x[static_cast<size_t>(t)]}, 1, inter, own, false, DType::float32,
          {y.values[static_cast<size_t>(t)]});
  }
}

TEST("experts: NaN or infinity of a token reaches that token only") {
  ThreadPool pool(2);
  on_each_isa([&](Isa) {
    for (const bool bfloat16 : {false, true})
      for (const int64_t tokens : {3, 30}) {
        const Routing routing = uneven(tokens, 2, 6);
        std::vector<float> x = activations(tokens, 40);
        const std::vector<float> clean =
            run(pool, x, DType::float32, 40, 19, routing, bfloat16, DType::float32).values;
        for (const float bad : {NAN, INFINITY, -INFINITY}) {
          x[static_cast<size_t>((tokens - 1) * 40 + 39)] = bad;
          const std::vector<float> y =
              run(pool, x, DType::float32, 40, 19, routing, bfloat16, DType::float32).values;
          CHECK(std::equal(y.begin(), y.end() - 40, clean.begin()));
          CHECK(std::none_of(y.end() - 40, y.end(), [](float v) { return std::isfinite(v); }));
        }
      }
  });
}

// ---- Grouped products

namespace {

std::vector<float> grouped(ThreadPool& pool, const std::vector<float>& x, int64_t in, int64_t out,
                           const std::vector<int32_t>& counts, const std::vector<Layer>& layers,
                           DType dtype) {
  std::vector<std::unique_ptr<ops::Factor>> factors;
  for (const Layer& layer : layers) factors.push_back(layer.factor(false));
  const int64_t rows = static_cast<int64_t>(x.size()) / in;
  const int64_t stride = out + 1;
  std::vector<std::byte> y(static_cast<size_t>(rows * stride * size_of(dtype)), std::byte{0xa5});
  ops::grouped_matmul(pool, {reinterpret_cast<const std::byte*>(x.data()), DType::float32, rows, in, in, 1},
                      counts.data(), factors, {y.data(), dtype, rows, out, stride, 1});
  std::vector<float> values(static_cast<size_t>(rows * out));
  for (int64_t r = 0; r < rows; ++r) {
    const std::byte* const row = y.data() + r * stride * size_of(dtype);
    ops::convert_row(dtype, row, DType::float32, reinterpret_cast<std::byte*>(values.data() + r * out), out);
    CHECK(row[out * size_of(dtype)] == std::byte{0xa5});
  }
  return values;
}

std::vector<Layer> integer_layers(int64_t count, int64_t out, int64_t in) {
  std::vector<Layer> layers;
  for (int64_t e = 0; e < count; ++e) {
    layers.push_back(dense_layer(out, in, DType::float32, e % 2 == 1, static_cast<uint32_t>(e + 1)));
    for (float& value : layers.back().values) value = std::nearbyint(value);
    for (size_t i = 0; i < layers.back().values.size(); ++i)
      reinterpret_cast<float*>(layers.back().dense.data())[i] =
          std::nearbyint(reinterpret_cast<float*>(layers.back().dense.data())[i]);
  }
  return layers;
}

}  // namespace

TEST(
    "grouped products of small integers are exact for any counts, empty experts and single rows among them") {
  on_each_isa([&](Isa) {
    for (const int threads : {1, 3}) {
      ThreadPool pool(threads);
      for (const int64_t in : {1, 16, 37})
        for (const int64_t out : {1, 33, 50})
          for (const std::vector<int32_t>& counts : {std::vector<int32_t>{1, 0, 4, 17, 0, 1},
                                                     std::vector<int32_t>{0, 0, 0}, std::vector<int32_t>{}})
            for (const DType dtype : {DType::float32, DType::bfloat16}) {
              const int64_t rows = std::accumulate(counts.begin(), counts.end(), int64_t{0});
              std::vector<float> x = random_activations(rows, in, 5);
              for (float& value : x) value = std::nearbyint(value);
              const std::vector<Layer> layers = integer_layers(static_cast<int64_t>(counts.size()), out, in);
              std::vector<float> expected;
              int64_t row = 0;
              for (size_t e = 0; e < counts.size(); ++e)
                for (int32_t i = 0; i < counts[e]; ++i, ++row)
                  for (int64_t j = 0; j < out; ++j) {
                    float sum = 0;
                    for (int64_t c = 0; c < in; ++c)
                      sum += x[static_cast<size_t>(row * in + c)] *
                             layers[e].values[static_cast<size_t>(j * in + c)];
                    expected.push_back(sum);  // below 2^8, which bfloat16 holds
                  }
              CHECK_EQ(grouped(pool, x, in, out, counts, layers, dtype), expected);
            }
    }
  });
}

TEST("grouped products refuse counts that are negative or do not add up to the rows") {
  ThreadPool pool(1);
  const std::vector<float> x(5 * 3);
  for (const std::vector<int32_t>& counts :
       {std::vector<int32_t>{2, -1, 4}, std::vector<int32_t>{2, 2, 0}, std::vector<int32_t>{2, 2, 2},
        std::vector<int32_t>{2147483647, 2147483647, 7}})
    CHECK_THROWS(Error, grouped(pool, x, 3, 4, counts, integer_layers(3, 4, 3), DType::float32));
}
