// What goes before the products of a mixture-of-experts layer and of LLM.int8, and what a parallel loop
// costs.

#include <cstdint>
#include <thread>
#include <vector>

#include "harness.h"
#include "ops/llm_int8/llm_int8.h"
#include "ops/moe/route.h"

namespace quantaria::bench {
namespace {

ConstMatrix matrix(const std::vector<float>& values, int64_t rows, int64_t cols) {
  return {reinterpret_cast<const std::byte*>(values.data()), DType::float32, rows, cols, cols, 1};
}

void loops(ThreadPool& pool) {
  for (const int64_t count : {2, 64}) {
    const std::string name = "loop: " + std::to_string(count) + " empty iterations";
    measure("native", name, pool.threads(), {}, [&](int) { pool.parallel_for(count, [](int64_t) {}); });
  }
  // A pause in which workers fall asleep is part of the run.
  measure("native", "loop: 2 empty iterations after 1 ms of rest, rest included", pool.threads(), {},
          [&](int) {
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
            pool.parallel_for(2, [](int64_t) {});
          });
}

void route(ThreadPool& pool) {
  constexpr int64_t experts = 64;
  for (const int64_t tokens : {1, 16, 256, 4096}) {
    std::vector<float> logits = weights(tokens * experts, 3);
    for (const bool softmax_first : {false, true}) {
      const ops::RouteOptions options{
          .top_k = 6, .softmax_first = softmax_first, .normalize = false, .scale = 1};
      const auto slots = static_cast<size_t>(tokens * options.top_k);
      std::vector<int32_t> indices(slots), order(slots), counts(experts), offsets(experts + 1);
      std::vector<float> weight(slots);
      measure("native",
              "route: " + std::to_string(tokens) + " tokens, 6 of 64, " +
                  (softmax_first ? "softmax first" : "softmax of the chosen"),
              pool.threads(), {.bytes = 4.0 * static_cast<double>(logits.size())}, [&](int) {
                ops::route(pool, matrix(logits, tokens, experts), options, indices.data(), weight.data(),
                           {counts.data(), offsets.data(), order.data()});
              });
    }
  }
}

void split(ThreadPool& pool) {
  constexpr int64_t cols = 4096;
  for (const int64_t rows : {1, 256}) {
    std::vector<float> x = weights(rows * cols, 4);
    for (int64_t c = 0; c < cols; c += cols / 4) x[static_cast<size_t>(c)] = 20;
    std::vector<uint8_t> mask(cols);
    std::vector<float> absmax(static_cast<size_t>(rows));
    std::vector<int8_t> codes(x.size());
    measure("native", "llm.int8: split of " + std::to_string(rows) + "x4096 float32, 4 outlier columns",
            pool.threads(), {.bytes = 5.0 * static_cast<double>(x.size())}, [&](int) {
              ops::outlier_mask(pool, matrix(x, rows, cols), 6, mask.data());
              ops::quantize_activations(pool, matrix(x, rows, cols), 6, mask.data(), absmax.data(),
                                        codes.data(), cols);
            });
  }
}

const Registration g_loops{"loop", loops};
const Registration g_route{"route", route};
const Registration g_split{"llm.int8", split};

}  // namespace
}  // namespace quantaria::bench
