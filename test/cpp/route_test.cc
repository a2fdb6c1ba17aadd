#include "ops/moe/route.h"

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "check.h"
#include "quantize_test.h"

namespace quantaria::test {
namespace {

using Ints = std::vector<int32_t>;

struct Routed {
  Ints indices, counts, offsets, order;
  std::vector<float> weights;
};

Routed run(ThreadPool& pool, const Weight& logits, const ops::RouteOptions& options) {
  const auto slots = static_cast<size_t>(logits.rows * options.top_k);
  const auto experts = static_cast<size_t>(logits.cols);
  Routed to{Ints(slots, -9), Ints(experts, -9), Ints(experts + 1, -9), Ints(slots, -9),
            std::vector<float>(slots, -9)};
  ops::route(pool, logits.view(), options, to.indices.data(), to.weights.data(),
             {to.counts.data(), to.offsets.data(), to.order.data()});
  return to;
}

}  // namespace

TEST("route: experts by falling logit, and the same bits for any thread count and layout") {
  for_each_weight([](const Weight& logits) {
    if (logits.cols == 0) return;
    for (const int64_t top_k : {int64_t{1}, std::min<int64_t>(6, logits.cols), logits.cols}) {
      const ops::RouteOptions options{.top_k = top_k, .softmax_first = true, .normalize = false, .scale = 1};
      ThreadPool one(1);
      const Routed first = run(one, logits, options);
      for (int64_t t = 0; t < logits.rows; ++t) {
        Ints expected(static_cast<size_t>(logits.cols));
        std::iota(expected.begin(), expected.end(), 0);
        std::stable_sort(expected.begin(), expected.end(),
                         [&](int32_t a, int32_t b) { return logits.at(t, a) > logits.at(t, b); });
        expected.resize(static_cast<size_t>(top_k));
        CHECK_EQ(Ints(first.indices.begin() + t * top_k, first.indices.begin() + (t + 1) * top_k), expected);
      }
      on_every_machine([&](ThreadPool& pool) {
        const Routed again = run(pool, logits, options);
        CHECK_EQ(again.indices, first.indices);
        CHECK_EQ(again.order, first.order);
        CHECK_EQ(again.offsets, first.offsets);
        CHECK(bits_of_all(again.weights) == bits_of_all(first.weights));
      });
    }
  });
}

TEST("route: slots are sorted by expert, stable, and an index out of range is named by its place") {
  const Ints indices{2, 0, 2, 2, 0, 4};
  Ints counts(5, -1), offsets(6, -1), order(6, -1);
  const ops::SlotOrder to{counts.data(), offsets.data(), order.data()};
  ops::sort_slots(indices.data(), 6, 2, 5, to);
  CHECK_EQ(counts, (Ints{2, 0, 3, 0, 1}));
  CHECK_EQ(offsets, (Ints{0, 2, 2, 5, 5, 6}));
  CHECK_EQ(order, (Ints{1, 4, 0, 2, 3, 5}));
  for (const int32_t wrong :
       {5, -1, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()}) {
    Ints bad = indices;
    bad[3] = wrong;
    const std::string message = error_of([&] { ops::sort_slots(bad.data(), 6, 2, 5, to); });
    CHECK(message.find(" at row 1, column 1, 0 to 4 expected") != std::string::npos);
  }
  ops::sort_slots(nullptr, 0, 2, 5, to);
  CHECK_EQ(counts, Ints(5));
  CHECK_EQ(offsets, Ints(6));
}

TEST("route: more experts a token than there are is refused") {
  const Weight logits = make_weight(2, 3, DType::float32, false);
  ThreadPool pool(1);
  for (const int64_t top_k : {0, 4, -1})
    CHECK(error_of([&] {
            ops::route(pool, logits.view(), {.top_k = top_k}, nullptr, nullptr, {nullptr, nullptr, nullptr});
          }).find("1 to 3") != std::string::npos);
}

}  // namespace quantaria::test
