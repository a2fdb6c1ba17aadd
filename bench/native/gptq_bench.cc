// Times GPTQ of a 4096 x 4096 weight on the CPU with 1 and 2 threads: the Hessian of 16384 tokens in 8
// batches, and the quantization in 4 bits by groups of 128. Beside each time stands the rate of its
// multiplications and additions, and what a large float32 product reached in the same second.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "core/allocator.h"
#include "cpu/isa.h"
#include "numerics/bfloat16.h"
#include "ops/bitpack/bitpack.h"
#include "ops/gemm/gemm.h"
#include "ops/gptq/gptq.h"

namespace {

using namespace quantaria;
using Clock = std::chrono::steady_clock;

constexpr int64_t kSize = 4096;
constexpr int64_t kBatch = 2048;
constexpr int kBatches = 8;
constexpr int kRepetitions = 3;

template <class T>
ConstMatrix matrix(const std::vector<T>& values, DType dtype, int64_t rows) {
  return {reinterpret_cast<const std::byte*>(values.data()), dtype, rows, kSize, kSize, 1};
}

double seconds_of(const std::function<void()>& run) {
  const auto start = Clock::now();
  run();
  return std::chrono::duration<double>(Clock::now() - start).count();
}

class Bench {
 public:
  explicit Bench(int threads) : pool_(threads) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 1.0f);
    for (size_t i = 0; i < states_.size(); ++i) {
      states_[i] = normal(random) + (i % kSize > 0 ? 0.5f * states_[i - 1] : 0.0f);
      narrow_[i] = numerics::bfloat16_from_float(states_[i]);
    }
    for (float& w : weight_) w = 0.02f * normal(random);
  }

  void hessian() {
    const double operations = static_cast<double>(kBatches * kBatch) * kSize * kSize;
    report("Hessian of 16384 tokens, float32", operations,
           [&] { update(matrix(states_, DType::float32, kBatch)); });
    report("Hessian of 16384 tokens, bfloat16", operations,
           [&] { update(matrix(narrow_, DType::bfloat16, kBatch)); });
  }

  void quantize() {
    const ops::IntScheme scheme{.bits = 4, .symmetric = true, .full_range = true, .group_size = 128};
    std::vector<uint8_t> packed(static_cast<size_t>(kSize * ops::packed_row_bytes(kSize, scheme.bits)));
    std::vector<float> scales(static_cast<size_t>(kSize * kSize / scheme.group_size));
    const ops::GptqProblem problem{matrix(weight_, DType::float32, kSize),
                                   products_.data(),
                                   1,
                                   {packed.data(), scales.data(), nullptr},
                                   nullptr};
    const auto allocator = std::make_shared<HostAllocator>();
    const ops::Scratch scratch = [&](int64_t bytes) {
      std::shared_ptr<std::byte> block = allocator->allocate(bytes);
      std::byte* const data = block.get();
      return std::make_shared<Storage>(std::move(block), data, bytes, true);
    };
    // The factorisation, the columns, and the two quadratic forms of the report.
    const double operations = (1.0 / 3 + 1 + 2) * kSize * kSize * kSize;
    report("quantization, 4 bits, group 128", operations,
           [&] { ops::quantize_gptq(pool_, problem, scheme, {}, scratch); });
  }

 private:
  void update(const ConstMatrix& x) {
    std::fill(products_.begin(), products_.end(), 0.0f);
    for (int i = 0; i < kBatches; ++i) ops::add_outer_products(pool_, x, products_.data());
  }

  void report(const char* name, double operations, const std::function<void()>& run) {
    std::vector<double> seconds;
    double ceiling = 0;
    for (int i = 0; i < kRepetitions; ++i) {
      const Matrix c{reinterpret_cast<std::byte*>(product_.data()), DType::float32, kBatch, kSize, kSize, 1};
      const double product = seconds_of([&] {
        ops::gemm(pool_, matrix(states_, DType::float32, kBatch), matrix(weight_, DType::float32, kSize), c);
      });
      ceiling = std::max(ceiling, 2.0 * kBatch * kSize * kSize / product);
      seconds.push_back(seconds_of(run));
    }
    std::sort(seconds.begin(), seconds.end());
    const double median = seconds[seconds.size() / 2];
    std::printf("  %-36s best %6.3f s  median %6.3f s  %4.0f GF/s (dense product %4.0f)\n", name,
                seconds.front(), median, operations / median / 1e9, ceiling / 1e9);
  }

  ThreadPool pool_;
  std::vector<float> states_ = std::vector<float>(static_cast<size_t>(kBatch * kSize));
  std::vector<uint16_t> narrow_ = std::vector<uint16_t>(states_.size());
  std::vector<float> weight_ = std::vector<float>(static_cast<size_t>(kSize * kSize));
  std::vector<float> products_ = std::vector<float>(weight_.size());
  std::vector<float> product_ = std::vector<float>(states_.size());
};

}  // namespace

int main() {
  std::printf("instruction set %s\n", std::string(name_of(selected_isa())).c_str());
  for (const int threads : {1, 2}) {
    std::printf("%d thread%s\n", threads, threads == 1 ? "" : "s");
    Bench bench(threads);
    bench.hessian();
    bench.quantize();
  }
  return 0;
}
