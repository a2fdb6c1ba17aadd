// The Hadamard transform of 4096 rows into memory that is warm.

#include <cstdint>
#include <vector>

#include "harness.h"
#include "numerics/bfloat16.h"
#include "ops/hadamard/hadamard.h"

namespace quantaria::bench {
namespace {

void hadamard(ThreadPool& pool) {
  constexpr int64_t rows = 4096;
  for (const int64_t n : {4096, 2560, 1664}) {
    const std::vector<float> x = weights(rows * n, 1);
    std::vector<uint16_t> narrow;
    for (const float value : x) narrow.push_back(numerics::bfloat16_from_float(value));
    std::vector<float> y(x.size());
    const auto run = [&](DType dtype, const void* from) {
      measure("native", "hadamard: 4096x" + std::to_string(n) + " " + std::string(name_of(dtype)),
              pool.threads(),
              {.bytes = 2.0 * static_cast<double>(x.size()) * static_cast<double>(size_of(dtype))}, [&](int) {
                ops::hadamard(pool, dtype, rows, n, 0.01f, static_cast<const std::byte*>(from),
                              reinterpret_cast<std::byte*>(y.data()));
              });
    };
    run(DType::float32, x.data());
    run(DType::bfloat16, narrow.data());
  }
}

const Registration g_hadamard{"hadamard", hadamard};

}  // namespace
}  // namespace quantaria::bench
