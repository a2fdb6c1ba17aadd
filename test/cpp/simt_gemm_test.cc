#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <vector>

#include "check.h"
#include "cuda/arrivals.h"
#include "ops/gemm/gemm_cuda.h"
#include "simt/emulator/global_memory.h"
#include "simt_test.h"

// Products by the tensor-core kernel, emulated.
namespace {

using namespace quantaria;
using namespace quantaria::test;

struct Case {
  int64_t m, n, k;
};

template <class T>
void put_as(std::byte* data, int64_t i, float value) {
  reinterpret_cast<T*>(data)[i] = simt::from_float<T>(value);
}

/// Element i becomes the value, rounded to the dtype.
void put(DType dtype, std::byte* data, int64_t i, float value) {
  if (dtype == DType::float16) return put_as<simt::Half>(data, i, value);
  if (dtype == DType::bfloat16) return put_as<simt::Bfloat16>(data, i, value);
  put_as<float>(data, i, value);
}

float get(DType dtype, const std::byte* data, int64_t i) {
  if (dtype == DType::float16) return simt::to_float(reinterpret_cast<const simt::Half*>(data)[i]);
  if (dtype == DType::bfloat16) return simt::to_float(reinterpret_cast<const simt::Bfloat16*>(data)[i]);
  return reinterpret_cast<const float*>(data)[i];
}

/// A matrix in device memory, row-major or column-major, and its values.
struct Factor {
  std::shared_ptr<std::byte> block;
  std::vector<float> values;
  ConstMatrix matrix;
};

Factor factor(simt::emulator::GlobalMemory& memory, DType dtype, int64_t rows, int64_t cols, uint32_t seed,
              bool transposed, bool exact) {
  Factor made;
  made.block = memory.allocate(std::max<int64_t>(1, rows * cols) * size_of(dtype));
  made.values.resize(static_cast<size_t>(rows * cols));
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const float value = exact ? static_cast<float>(static_cast<int>(random() % 17)) - 8 : normal(random);
      const int64_t place = transposed ? c * rows + r : r * cols + c;
      put(dtype, made.block.get(), place, value);
      made.values[static_cast<size_t>(r * cols + c)] = get(dtype, made.block.get(), place);
    }
  made.matrix = {made.block.get(), dtype, rows, cols, transposed ? 1 : cols, transposed ? rows : 1};
  return made;
}

/// Runs one product, of one dtype unless `b_dtype` names another one. Exact inputs must give the float64
/// sum's rounding, others stay within the bound.
bool product_is_right(DType dtype, DType out, const Case& size, bool k_first, bool with_bias, bool exact,
                      DType b_dtype = DType::boolean, bool a_transposed = false) {
  const auto memory = std::make_shared<simt::emulator::GlobalMemory>();
  Factor a = factor(*memory, dtype, size.m, size.k, 1, a_transposed, exact);
  Factor b = factor(*memory, b_dtype == DType::boolean ? dtype : b_dtype, size.k, size.n, 2, k_first, exact);
  Factor bias = factor(*memory, DType::float32, 1, size.n, 3, false, exact);
  const auto c_block = memory->allocate(std::max<int64_t>(1, size.m * size.n) * size_of(out));
  const auto workspace = memory->allocate(std::max<int64_t>(1, ops::gemm_workspace(a.matrix, b.matrix)));
  const auto counters = memory->allocate(cuda::kArrivalCounters * int64_t{sizeof(unsigned)});
  auto* const arrivals = reinterpret_cast<unsigned*>(counters.get());
  std::fill_n(arrivals, cuda::kArrivalCounters, 0u);
  simt::emulator::options().global = memory.get();
  ops::gemm_cuda(nullptr, a.matrix, b.matrix, with_bias ? &bias.matrix : nullptr,
                 {c_block.get(), out, size.m, size.n, size.n, 1}, workspace.get(), arrivals);
  simt::emulator::options().global = nullptr;
  memory->require_intact();
  const double unit_in = 0x1p-24;
  const double unit_out = out == DType::float32 ? 0x1p-24 : out == DType::float16 ? 0x1p-11 : 0x1p-8;
  for (int64_t i = 0; i < size.m; ++i)
    for (int64_t j = 0; j < size.n; ++j) {
      double sum = with_bias ? bias.values[static_cast<size_t>(j)] : 0;
      double magnitude = std::abs(sum);
      for (int64_t p = 0; p < size.k; ++p) {
        const double term = double{a.values[static_cast<size_t>(i * size.k + p)]} *
                            double{b.values[static_cast<size_t>(p * size.n + j)]};
        sum += term;
        magnitude += std::abs(term);
      }
      const double got = double{get(out, c_block.get(), i * size.n + j)};
      alignas(4) std::byte rounded[4];
      put(out, rounded, 0, static_cast<float>(sum));
      const double error = std::abs(got - sum);
      const double bound = 4 * unit_in * std::sqrt(static_cast<double>(size.k) + 1) * magnitude +
                           unit_out * std::abs(sum) + 0x1p-24;
      const bool right = exact ? got == double{get(out, rounded, 0)} : error <= bound;
      if (!right) {
        report(__FILE__, __LINE__,
               show(size.m) + " x " + show(size.n) + " x " + show(size.k) + ": c(" + show(i) + ", " +
                   show(j) + ") is " + show(got) + ", expected " + show(sum));
        return false;
      }
    }
  return true;
}

constexpr Case kCases[] = {{1, 1, 1},    {3, 5, 7},     {16, 64, 32},  {17, 33, 40}, {64, 64, 64},
                           {65, 63, 72}, {31, 130, 96}, {129, 40, 33}, {2, 72, 200}, {5, 8, 0}};

TEST("simt: products of small integers are exact, in every shape, orientation and dtype") {
  for (const Case& size : kCases)
    for (const bool k_first : {false, true}) {
      CHECK(product_is_right(DType::float16, DType::float32, size, k_first, true, true));
      CHECK(product_is_right(DType::bfloat16, DType::bfloat16, size, k_first, false, true));
    }
  for (const int64_t m : swept_rows())
    for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
      for (const Case& size : {Case{m, 70, 72}, Case{m, 33, 45}})
        CHECK(product_is_right(dtype, DType::float32, size, false, true, true, dtype));
}

TEST("simt: errors of products stay under 4 eps sqrt(K) sum|a||b| and one rounding") {
  for (const Case& size : kCases) {
    CHECK(product_is_right(DType::float16, DType::float16, size, true, true, false));
    CHECK(product_is_right(DType::bfloat16, DType::float32, size, false, false, false));
  }
}

TEST(
    "simt: products with float32, mixed and strided factors are exact on small integers, else within the "
    "bound") {
  const DType floats[] = {DType::float32, DType::float16, DType::bfloat16};
  int turn = 0;
  for (const Case& size : kCases)
    for (const bool k_first : {false, true}) {
      const DType a = floats[turn % 3];
      const DType b = a == DType::float32 ? floats[turn / 3 % 3] : DType::float32;
      const bool a_transposed = ++turn % 2 == 0;
      CHECK(product_is_right(a, DType::float32, size, k_first, true, true, b, a_transposed));
      CHECK(product_is_right(a, DType::float16, size, k_first, false, false, b, a_transposed));
    }
  // No tensor-core loop reads these strides.
  CHECK(product_is_right(DType::float16, DType::float32, {17, 65, 33}, true, false, true, DType::float16,
                         true));
}

TEST("simt: columns shared out between blocks leave the sums of a product exact, else within the bound") {
  for (const Case& size : {Case{1, 70, 600}, {17, 33, 1030}, {65, 9, 512}, {129, 66, 545}, {64, 64, 2100}}) {
    const ConstMatrix a{nullptr, DType::float16, size.m, size.k, size.k, 1};
    CHECK(ops::gemm_workspace(a, {nullptr, DType::float16, size.k, size.n, size.n, 1}) > 0);
    for (const bool k_first : {false, true}) {
      CHECK(product_is_right(DType::float16, DType::float32, size, k_first, true, true));
      CHECK(product_is_right(DType::bfloat16, DType::bfloat16, size, k_first, false, false));
    }
  }
}

bool small_product() {
  return product_is_right(DType::float16, DType::float32, {20, 70, 136}, true, false, true);
}

TEST(
    "simt: a product is the same in every order of threads and arrivals, and needs its barriers and its "
    "wait") {
  require_each_sync(__FILE__, __LINE__, {small_product});
}

bool small_float32_product() {
  return product_is_right(DType::float32, DType::float32, {20, 70, 40}, true, false, true);
}

TEST("simt: a float32 product is the same in every order of threads and needs its barriers") {
  require_each_sync(__FILE__, __LINE__, {small_float32_product});
}

TEST("simt: no row of a product's tiles conflicts with another in shared memory") {
  CHECK(small_product());
  CHECK_EQ(simt::emulator::last_counts().bank_conflicts, uint64_t{0});
}

}  // namespace
