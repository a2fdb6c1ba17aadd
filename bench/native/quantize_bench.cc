// Times the quantization kernels on the CPU, with 1 and 2 threads, on bf16 slices of an expert tensor stored
// [in, out] (read where they lie) and on a contiguous float32 matrix. Outputs are reused. Each row: best and
// median of the repetitions in ms and GB/s of the unquantized side, and the median as a share of what the
// memory did in the same second: a plain read of as many bytes for quantization, a plain fill for
// dequantization, a copy for the transposition.

#include <cstdio>
#include <random>
#include <string>
#include <vector>

#include "cpu/isa.h"
#include "numerics/bfloat16.h"
#include "ops/bitpack/bitpack.h"
#include "ops/copy/copy.h"
#include "ops/quantize/quantize.h"
#include "report.h"

namespace {

using namespace quantaria;
using namespace quantaria::bench;

/// Experts of Aria's fc1: [expert, hidden, 2 * inter] bf16, gate in the first half of the columns.
struct Experts {
  static constexpr int64_t kCount = 8, kIn = 2560, kOut = 1664, kStride = 3328;
  std::vector<uint16_t> data;

  Experts() : data(static_cast<size_t>(kCount * kIn * kStride)) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal(0.0f, 0.02f);
    for (uint16_t& x : data) x = numerics::bfloat16_from_float(normal(random));
  }
  ConstMatrix gate(int expert) const {
    const auto* first = data.data() + expert % kCount * kIn * kStride;
    return {reinterpret_cast<const std::byte*>(first), DType::bfloat16, kOut, kIn, 1, kStride};
  }
  static constexpr double kBytes = 2.0 * kOut * kIn;
};

void bench_experts(ThreadPool& pool, Ceiling& ceiling, const Experts& experts) {
  constexpr int64_t out = Experts::kOut, in = Experts::kIn;
  std::vector<uint8_t> packed(static_cast<size_t>(out * in * 2));
  std::vector<float> scales(static_cast<size_t>(out * in / 32));
  std::vector<int32_t> zeros(scales.size());
  std::vector<uint8_t> bytes(static_cast<size_t>(out * in / 32));
  ops::ErrorSums sums;
  const auto integers = [&](const char* name, ops::IntScheme scheme) {
    report(ceiling, Memory::read, name, Experts::kBytes, [&](int i) {
      ops::quantize_int(pool, experts.gate(i), scheme,
                        {packed.data(), scales.data(), scheme.symmetric ? nullptr : zeros.data()}, &sums);
    });
  };
  integers("int4 symmetric, group 128, with errors", {.bits = 4});
  integers("int4 affine, group 128, with errors", {.bits = 4, .symmetric = false});
  integers("int3 symmetric, group 128, with errors", {.bits = 3});
  integers("int8 per row, with errors", {.bits = 8, .granularity = ops::Granularity::row});
  const auto books = [&](const char* name, ops::CodebookScheme scheme) {
    report(ceiling, Memory::read, name, Experts::kBytes, [&](int i) {
      if (scheme.double_quant)
        ops::quantize_codebook(pool, experts.gate(i), scheme,
                               {packed.data(), nullptr, bytes.data(), scales.data(), scales.data() + 4096},
                               &sums);
      else
        ops::quantize_codebook(pool, experts.gate(i), scheme,
                               {packed.data(), scales.data(), nullptr, nullptr, nullptr}, &sums);
    });
  };
  books("nf4, block 64, with errors", {});
  books("nf4, block 64, double, with errors", {.double_quant = true});
  books("dynamic8, block 256, with errors", {.book = ops::Codebook::dynamic8, .block_size = 256});
  report(ceiling, Memory::read, "fp8 e4m3 per row, with errors", Experts::kBytes,
         [&](int i) { ops::quantize_fp8(pool, experts.gate(i), {}, packed.data(), scales.data(), &sums); });
  report(ceiling, Memory::read, "mxfp4, with errors", Experts::kBytes, [&](int i) {
    ops::quantize_mx(pool, experts.gate(i), {.element = ops::MxElement::e2m1}, packed.data(), bytes.data(),
                     nullptr, &sums);
  });
  report(ceiling, Memory::read, "llm.int8, with errors", Experts::kBytes,
         [&](int i) { ops::quantize_llm_int8(pool, experts.gate(i), packed.data(), scales.data(), &sums); });
  report(ceiling, Memory::copy, "copy, transposing", Experts::kBytes, [&](int i) {
    const Matrix to{reinterpret_cast<std::byte*>(packed.data()), DType::bfloat16, out, in, in, 1};
    ops::copy_cast(pool, experts.gate(i), to);
  });
}

void bench_square(ThreadPool& pool, Ceiling& ceiling) {
  constexpr int64_t n = 4096;
  constexpr double bytes = 4.0 * n * n;
  std::vector<float> weights(static_cast<size_t>(n * n));
  std::mt19937 random(2);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  for (float& x : weights) x = normal(random);
  const ConstMatrix w{reinterpret_cast<const std::byte*>(weights.data()), DType::float32, n, n, n, 1};
  std::vector<uint8_t> packed(static_cast<size_t>(n * n));
  std::vector<float> scales(static_cast<size_t>(n * n / 32));
  std::vector<float> values(weights.size());
  auto* const to = reinterpret_cast<std::byte*>(values.data());
  const ops::IntScheme int4{.bits = 4, .full_range = true};
  const ops::CodebookScheme nf4;
  report(ceiling, Memory::read, "int4 symmetric full range, group 128", bytes,
         [&](int) { ops::quantize_int(pool, w, int4, {packed.data(), scales.data(), nullptr}); });
  report(ceiling, Memory::fill, "int4 dequantize to float32", bytes, [&](int) {
    ops::dequantize_int(pool, int4, {packed.data(), scales.data(), nullptr}, n, n, DType::float32, to);
  });
  report(ceiling, Memory::read, "nf4, block 64", bytes, [&](int) {
    ops::quantize_codebook(pool, w, nf4, {packed.data(), scales.data(), nullptr, nullptr, nullptr});
  });
  report(ceiling, Memory::fill, "nf4 dequantize to float32", bytes, [&](int) {
    ops::dequantize_codebook(pool, nf4, {packed.data(), scales.data(), nullptr, nullptr, nullptr}, n, n,
                             DType::float32, to);
  });
  report(ceiling, Memory::fill, "nf4 dequantize to bfloat16", bytes / 2, [&](int) {
    ops::dequantize_codebook(pool, nf4, {packed.data(), scales.data(), nullptr, nullptr, nullptr}, n, n,
                             DType::bfloat16, to);
  });
}

}  // namespace

int main() {
  std::printf("instruction set %s\n", std::string(name_of(selected_isa())).c_str());
  const Experts experts;
  for (const int threads : {1, 2}) {
    ThreadPool pool(threads);
    Ceiling ceiling(pool);
    std::printf("%d thread%s, bf16 [1664, 2560] slices of experts stored [2560, 3328]\n", threads,
                threads == 1 ? "" : "s");
    bench_experts(pool, ceiling, experts);
    std::printf("%d thread%s, float32 [4096, 4096]\n", threads, threads == 1 ? "" : "s");
    bench_square(pool, ceiling);
  }
  return 0;
}
