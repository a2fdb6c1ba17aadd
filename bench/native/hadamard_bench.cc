// Times the Hadamard transform of 4096 rows on the CPU with 1 and 2 threads, beside a plain copy of as many
// bytes in the same second. The output is reused.

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "numerics/bfloat16.h"
#include "ops/hadamard/hadamard.h"
#include "report.h"

namespace {

using namespace quantaria;
using namespace quantaria::bench;

constexpr int64_t kRows = 4096;

void bench_hadamard(ThreadPool& pool, Ceiling& ceiling, int64_t n) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 1.0f);
  std::vector<float> x(static_cast<size_t>(kRows * n));
  std::vector<uint16_t> narrow(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = normal(random);
    narrow[i] = numerics::bfloat16_from_float(x[i]);
  }
  std::vector<float> y(x.size());
  const auto run = [&](DType dtype, const void* from) {
    ops::hadamard(pool, dtype, kRows, n, 0.01f, static_cast<const std::byte*>(from),
                  reinterpret_cast<std::byte*>(y.data()));
  };
  const std::string size = "[4096, " + std::to_string(n) + "]";
  const double bytes = 4.0 * static_cast<double>(x.size());
  report(ceiling, Memory::copy, "hadamard " + size + " float32", bytes,
         [&](int) { run(DType::float32, x.data()); });
  report(ceiling, Memory::copy, "hadamard " + size + " bfloat16", bytes / 2,
         [&](int) { run(DType::bfloat16, narrow.data()); });
}

}  // namespace

int main() {
  std::printf("instruction set %s\n", std::string(name_of(selected_isa())).c_str());
  for (const int threads : {1, 2}) {
    ThreadPool pool(threads);
    Ceiling ceiling(pool);
    std::printf("%d thread%s\n", threads, threads == 1 ? "" : "s");
    for (const int64_t n : {4096, 2560, 1664}) bench_hadamard(pool, ceiling, n);
  }
  return 0;
}
