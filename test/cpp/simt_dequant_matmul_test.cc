#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/arrivals.h"
#include "ops/bitpack/bitpack.h"
#include "ops/dequant_matmul/dequant_matmul_cuda.h"
#include "simt/emulator/global_memory.h"
#include "simt_test.h"

// Products with quantized weights by the tensor-core loop and its float32 stand-in, emulated.
namespace {

using namespace quantaria;
using namespace quantaria::test;

struct Case {
  int64_t m, n, k;
};

/// A weight's kind: of integers unless `book` is not dynamic8.
struct Kind {
  int bits;
  bool symmetric;
  int64_t group;
  bool is_book = false;
  ops::Codebook book = ops::Codebook::nf4;
  bool nested = false;
};

using simt::emulator::GlobalMemory;

template <class T>
T* room(GlobalMemory& memory, std::vector<std::shared_ptr<std::byte>>& blocks, int64_t count) {
  blocks.push_back(memory.allocate(std::max<int64_t>(1, count) * static_cast<int64_t>(sizeof(T))));
  return reinterpret_cast<T*>(blocks.back().get());
}

/// A weight of random codes and constants in device memory. Exact: all scales are powers of two.
ops::DeviceWeight weight_of(GlobalMemory& memory, std::vector<std::shared_ptr<std::byte>>& blocks,
                            const Kind& kind, int64_t n, int64_t k, bool exact) {
  std::mt19937 random(7);
  const int64_t row_bytes = kind.is_book ? 0 : ops::packed_row_bytes(k, kind.bits);
  const int64_t bytes = kind.is_book ? ops::packed_row_bytes(n * k, kind.bits) : n * row_bytes;
  auto* const packed = room<uint8_t>(memory, blocks, bytes);
  for (int64_t i = 0; i < bytes; ++i) packed[i] = static_cast<uint8_t>(random());
  const int64_t group = std::min(kind.group, std::max<int64_t>(1, k));
  const int64_t count = kind.is_book ? (n * k + kind.group - 1) / kind.group : n * ((k + group - 1) / group);
  auto* const scales = room<float>(memory, blocks, count);
  for (int64_t i = 0; i < count; ++i)
    scales[i] = exact ? std::ldexp(1.0f, static_cast<int>(random() % 3) - 1)
                      : 0.01f + static_cast<float>(random() % 1000) * 0x1p-16f;
  if (kind.is_book) {
    ops::CodebookScheme scheme{kind.book, kind.group, kind.nested};
    if (!kind.nested) return ops::coded_codebook(scheme, {packed, scales, nullptr, nullptr, nullptr}, n, k);
    auto* const codes = room<uint8_t>(memory, blocks, count);
    for (int64_t i = 0; i < count; ++i) codes[i] = static_cast<uint8_t>(random());
    auto* const offset = room<float>(memory, blocks, 1);
    *offset = 0.375f;
    return ops::coded_codebook(scheme, {packed, nullptr, codes, scales, offset}, n, k);
  }
  ops::IntScheme scheme;
  scheme.bits = kind.bits;
  scheme.symmetric = kind.symmetric;
  scheme.group_size = group;
  int32_t* zeros = nullptr;
  if (!kind.symmetric) {
    zeros = room<int32_t>(memory, blocks, count);
    for (int64_t i = 0; i < count; ++i) zeros[i] = static_cast<int32_t>(random() % (1u << kind.bits));
  }
  return ops::coded_int(scheme, {packed, scales, zeros}, n, k);
}

/// Runs one product and holds it against the float64 product of the dequantized values: exact inputs must
/// give it, others stay within the bound of float32 sums, and of one rounding of the weight to x's dtype if
/// `rounded`.
bool product_is_right(const Kind& kind, const Case& size, DType dtype, bool exact, bool rounded) {
  const auto memory = std::make_shared<GlobalMemory>();
  std::vector<std::shared_ptr<std::byte>> blocks;
  const auto [m, n, k] = size;
  const ops::DeviceWeight weight = weight_of(*memory, blocks, kind, n, k, exact);
  auto* const values = room<float>(*memory, blocks, n * k);
  auto* const x = room<std::byte>(*memory, blocks, m * k * size_of(dtype));
  auto* const y = room<float>(*memory, blocks, m * n);
  auto* const bias = room<float>(*memory, blocks, n);
  std::vector<float> x_values(static_cast<size_t>(m * k));
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < m * k; ++i) {
    const float value = exact ? static_cast<float>(static_cast<int>(random() % 9)) - 4 : normal(random);
    float& kept = x_values[static_cast<size_t>(i)];
    if (dtype == DType::float32) {
      kept = reinterpret_cast<float*>(x)[i] = value;
    } else if (dtype == DType::float16) {
      reinterpret_cast<simt::Half*>(x)[i] = simt::from_float<simt::Half>(value);
      kept = simt::to_float(reinterpret_cast<simt::Half*>(x)[i]);
    } else {
      reinterpret_cast<simt::Bfloat16*>(x)[i] = simt::from_float<simt::Bfloat16>(value);
      kept = simt::to_float(reinterpret_cast<simt::Bfloat16*>(x)[i]);
    }
  }
  for (int64_t j = 0; j < n; ++j) bias[j] = static_cast<float>(j % 5);
  const int64_t workspace = ops::dequant_matmul_workspace(m, dtype, weight, rounded);
  auto* const splits = room<std::byte>(*memory, blocks, workspace);
  auto* const arrivals = room<unsigned>(*memory, blocks, cuda::kArrivalCounters);
  std::fill_n(arrivals, cuda::kArrivalCounters, 0u);
  const ConstMatrix added{reinterpret_cast<std::byte*>(bias), DType::float32, 1, n, n, 1};
  simt::emulator::options().global = memory.get();
  ops::dequantize_cuda(nullptr, weight, DType::float32, reinterpret_cast<std::byte*>(values));
  ops::dequant_matmul_cuda(nullptr, {x, dtype, m, k, k, 1}, weight, &added,
                           {reinterpret_cast<std::byte*>(y), DType::float32, m, n, n, 1}, rounded, splits,
                           arrivals);
  simt::emulator::options().global = nullptr;
  memory->require_intact();
  if (std::any_of(arrivals, arrivals + cuda::kArrivalCounters, [](unsigned count) { return count != 0; })) {
    report(__FILE__, __LINE__, "a counter is left above 0");
    return false;
  }

  const double unit = !rounded                   ? 0
                      : dtype == DType::float16  ? 0x1p-11
                      : dtype == DType::bfloat16 ? 0x1p-8
                                                 : 0;
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = bias[j];
      double magnitude = std::abs(sum);
      for (int64_t p = 0; p < k; ++p) {
        const double term = double{x_values[static_cast<size_t>(i * k + p)]} * double{values[j * k + p]};
        sum += term;
        magnitude += std::abs(term);
      }
      const double got = double{y[i * n + j]};
      const double bound =
          exact ? 0 : (4 * 0x1p-24 * std::sqrt(static_cast<double>(k) + 1) + unit) * magnitude;
      if (!(std::abs(got - sum) <= bound)) {
        report(__FILE__, __LINE__,
               show(m) + " x " + show(n) + " x " + show(k) + ", " + show(kind.bits) + " bits: y(" + show(i) +
                   ", " + show(j) + ") is " + show(got) + ", expected " + show(sum));
        return false;
      }
    }
  return true;
}

constexpr int64_t kWhole = int64_t{1} << 40;
constexpr Kind kIntegers[] = {{4, true, 128}, {4, false, 32}, {4, false, kWhole}, {2, false, 32},
                              {3, true, 64},  {8, false, 96}, {3, false, 32},     {8, true, kWhole},
                              {2, true, 64},  {4, false, 64}};
constexpr Case kCases[] = {{1, 1, 1},    {3, 5, 40},    {16, 64, 128}, {17, 33, 96}, {64, 65, 160},
                           {65, 63, 72}, {31, 130, 96}, {2, 70, 1100}, {33, 8, 130}, {5, 8, 0},
                           {8, 66, 200}, {9, 70, 136},  {32, 40, 264}};

TEST("simt: products with integer weights are exact on small integers, of every width, group and shape") {
  // Of every tile and width both dtypes.
  int of_kind = 0;
  for (const Kind& kind : kIntegers) {
    int turn = of_kind++;
    for (const Case& size : thinned(kCases, 3)) {
      const DType dtype = ++turn % 2 ? DType::float16 : DType::bfloat16;
      CHECK(product_is_right(kind, size, dtype, true, false));
    }
  }
  for (const int64_t m : swept_rows())
    for (const Kind& kind : kIntegers)
      for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
        CHECK(product_is_right(kind, {m, 70, 200}, dtype, true, false));
}

TEST(
    "simt: products with integer weights stay under 4 eps sqrt(K) sum|a||b|: no weight is rounded to 16 "
    "bits") {
  int turn = 0;
  for (const Kind& kind : thinned(kIntegers, 3))
    for (const Case& size : {kCases[3], kCases[5], kCases[7], kCases[11]}) {
      const DType dtype = ++turn % 2 ? DType::bfloat16 : DType::float16;
      CHECK(product_is_right(kind, size, dtype, false, false));
    }
}

constexpr Kind kBooks[] = {{4, true, 64, true, ops::Codebook::nf4},
                           {4, true, 32, true, ops::Codebook::nf4, true},
                           {4, true, 64, true, ops::Codebook::e3m0},
                           {4, true, 128, true, ops::Codebook::fp4},
                           {8, true, 32, true, ops::Codebook::dynamic8}};

TEST("simt: products with code books stay under the bound of a table rounded to 16 bits") {
  const std::vector<Case> sizes{{1, 20, 128}, {17, 66, 256}, {66, 40, 128}, {3, 9, 384}, {11, 65, 128}};
  for (const Kind& kind : kBooks)
    for (const Case& size : thinned(sizes, 2))
      for (const DType dtype : {DType::float16, DType::bfloat16}) {
        CHECK(product_is_right(kind, size, dtype, false, true));
        CHECK(product_is_right(kind, size, dtype, false, false));
      }
  for (const int64_t m : swept_rows())
    for (const Kind& kind : kBooks)
      for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
        CHECK(product_is_right(kind, {m, 70, 128}, dtype, false, true));
}

TEST("simt: columns shared out between blocks leave the sums exact, of few rows and of many") {
  int turn = 0;
  const std::vector<Case> sizes{{1, 70, 1100},  {7, 33, 1030}, {8, 65, 1152},  {15, 64, 1024},
                                {17, 66, 800},  {31, 33, 900}, {32, 65, 1000}, {63, 40, 768},
                                {64, 70, 1100}, {65, 9, 700},  {127, 33, 700}, {129, 65, 650}};
  for (const Case& size : thinned(sizes, 3)) {
    const Kind& kind = kIntegers[turn % 10];
    const DType dtype = ++turn % 2 ? DType::float16 : DType::bfloat16;
    const auto memory = std::make_shared<GlobalMemory>();
    std::vector<std::shared_ptr<std::byte>> blocks;
    const ops::DeviceWeight weight = weight_of(*memory, blocks, kind, size.n, size.k, true);
    CHECK(ops::dequant_matmul_workspace(size.m, dtype, weight, false) > 0);
    CHECK(product_is_right(kind, size, dtype, true, false));
    CHECK(product_is_right(kind, size, dtype, false, false));
  }
}

TEST("simt: which products take tensor cores") {
  const auto memory = std::make_shared<GlobalMemory>();
  std::vector<std::shared_ptr<std::byte>> blocks;
  const auto taken = [&](const Kind& kind, int64_t k, bool rounded) {
    return ops::on_tensor_cores(DType::bfloat16, weight_of(*memory, blocks, kind, 8, k, true).matrix,
                                rounded);
  };
  CHECK(taken({4, false, 32}, 96, false));
  CHECK(taken({4, false, kWhole}, 45, false));
  CHECK(!taken({4, false, 10}, 40, true));
  CHECK(!taken({5, false, 32}, 96, true));
  CHECK(taken(kBooks[0], 128, true));
  CHECK(!taken(kBooks[0], 128, false));
  CHECK(!taken(kBooks[0], 96, true));
}

/// Of each tile by its rows, in more steps than it has stages; the last one is in the first stage, where the
/// sums go afterwards.
bool eight_rows() { return product_is_right({4, false, 32}, {7, 70, 500}, DType::float16, true, false); }
bool sixteen_rows() { return product_is_right({8, false, 64}, {12, 70, 500}, DType::bfloat16, true, false); }
bool thirty_two_rows() {
  return product_is_right({2, false, 32}, {20, 130, 300}, DType::float16, true, false);
}
bool many_rows() { return product_is_right({4, false, 32}, {33, 70, 300}, DType::float16, true, false); }
bool split_product() { return product_is_right({3, false, 64}, {2, 70, 1100}, DType::bfloat16, true, false); }
bool split_many_rows() { return product_is_right({4, true, 128}, {33, 9, 800}, DType::float16, true, false); }
bool nested_product() {
  return product_is_right({4, true, 32, true, ops::Codebook::nf4, true}, {3, 9, 512}, DType::bfloat16, false,
                          true);
}

TEST(
    "simt: a coded product is right in every order of threads and arrivals, and needs each barrier and "
    "wait") {
  // Whoever of a tile's blocks is the last adds up the sums of all.
  for (const auto& body : {split_product, split_many_rows})
    require_right(__FILE__, __LINE__, every_order(1, 6), body);
  for (const auto& body : {eight_rows, sixteen_rows, thirty_two_rows, many_rows, nested_product})
    require_each_sync(__FILE__, __LINE__, {body});
}

}  // namespace
