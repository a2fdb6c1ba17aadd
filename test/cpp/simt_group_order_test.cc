#include <algorithm>
#include <cmath>
#include <memory>
#include <numeric>
#include <random>

#include "check.h"
#include "cuda/arrivals.h"
#include "ops/bitpack/bitpack.h"
#include "ops/dequant_matmul/dequant_matmul_cuda.h"
#include "ops/dequant_matmul/group_order.h"
#include "ops/dequant_matmul/group_order_cuda.h"
#include "simt_room.h"

// Weights whose columns name their groups, on tensor cores, emulated.
namespace {

using namespace quantaria;
using namespace quantaria::test;

struct Case {
  int64_t m, n, k;
};

struct Kind {
  int bits;
  bool symmetric;
  int64_t group;
  bool even = true;  // groups as long as a permutation makes them, else as they come
};

TEST("columns are put in the order of their groups, rising, each group from a multiple of 32 on") {
  const std::vector<int32_t> index{2, 0, 2, 1, 0, 2};
  CHECK(ops::order_by_groups(index, 3).columns.empty());  // 96 places for 6 columns
  std::vector<int32_t> many;
  for (int32_t k = 0; k < 100; ++k) many.push_back(k * 7 % 3);
  const ops::GroupOrder order = ops::order_by_groups(many, 3);
  CHECK_EQ(order.span, int64_t{64});
  CHECK_EQ(order.columns.size(), size_t{192});
  for (int64_t g = 0; g < 3; ++g) {
    int64_t place = g * order.span;
    for (int32_t k = 0; k < 100; ++k)
      if (many[static_cast<size_t>(k)] == g) CHECK_EQ(order.columns[static_cast<size_t>(place++)], k);
    for (; place < (g + 1) * order.span; ++place) CHECK_EQ(order.columns[static_cast<size_t>(place)], -1);
  }
  CHECK(ops::order_by_groups({}, 0).columns.empty());
}

/// Holds one product against the float64 one of the values that each column has by its own group: exact for
/// whole numbers and scales that are powers of two, else under the bound of float32 sums.
bool product_is_right(const Kind& kind, const Case& size, DType dtype, bool exact) {
  DeviceRoom room;
  std::mt19937 random(4);
  std::normal_distribution<float> normal;
  const auto [m, n, k] = size;
  const int64_t groups = (k + kind.group - 1) / kind.group;
  std::vector<int32_t> index;
  for (int64_t i = 0; i < k; ++i)
    index.push_back(
        static_cast<int32_t>(kind.even ? i / kind.group : static_cast<int64_t>(random()) % groups));
  std::shuffle(index.begin(), index.end(), random);
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < n * k; ++i) codes.push_back(static_cast<uint8_t>(random() % (1u << kind.bits)));
  std::vector<uint8_t> packed(static_cast<size_t>(n * ops::packed_row_bytes(k, kind.bits)));
  ThreadPool serial(1);
  ops::pack_bits(serial, {reinterpret_cast<const std::byte*>(codes.data()), DType::uint8, n, k, k, 1},
                 kind.bits, 0, packed.data());
  std::vector<float> scales;
  std::vector<int32_t> zeros;
  for (int64_t i = 0; i < n * groups; ++i) {
    scales.push_back(exact ? std::ldexp(1.0f, static_cast<int>(random() % 3) - 1)
                           : 0.01f + static_cast<float>(random() % 1000) * 0x1p-16f);
    zeros.push_back(
        static_cast<int32_t>(kind.symmetric ? 1u << (kind.bits - 1) : random() % (1u << kind.bits)));
  }
  ops::IntScheme scheme;
  scheme.bits = kind.bits;
  scheme.symmetric = kind.symmetric;
  scheme.group_size = kind.group;
  ops::ConstIntStored stored{room.copy(packed), room.copy(scales),
                             kind.symmetric ? nullptr : room.copy(zeros)};
  stored.group_index = room.copy(index);
  const ops::DeviceWeight weight = ops::coded_int(scheme, stored, n, k);
  CHECK(!ops::on_tensor_cores(dtype, weight.matrix, false));

  const auto order = std::make_shared<const ops::GroupOrder>(ops::order_by_groups(index, groups));
  const auto count = static_cast<int64_t>(order->columns.size());
  if (count == 0) return false;
  auto* const columns = room.copy(order->columns);
  auto* const words = room.take<uint32_t>(n * count * kind.bits / 32);
  const ops::DeviceWeight ordered = ops::in_group_order(weight, order, columns, words);
  // A column of x beside each of the others: strides are taken as they come.
  auto* const x = room.take<uint16_t>(m * (2 * k + 1));
  std::vector<double> values(static_cast<size_t>(m * k));
  for (int64_t i = 0; i < m * k; ++i) {
    const float value = exact ? static_cast<float>(static_cast<int>(random() % 9)) - 4 : normal(random);
    uint16_t& to = x[i / k * (2 * k + 1) + i % k * 2];
    if (dtype == DType::float16) {
      const auto half = simt::from_float<simt::Half>(value);
      std::memcpy(&to, static_cast<const void*>(&half), 2);
      values[static_cast<size_t>(i)] = double{simt::to_float(half)};
    } else {
      const auto brain = simt::from_float<simt::Bfloat16>(value);
      std::memcpy(&to, static_cast<const void*>(&brain), 2);
      values[static_cast<size_t>(i)] = double{simt::to_float(brain)};
    }
  }
  auto* const y = room.take<float>(m * n);
  auto* const workspace = room.take<std::byte>(ops::dequant_matmul_workspace(m, dtype, ordered, false));
  auto* const arrivals = room.take<unsigned>(cuda::kArrivalCounters);
  std::fill_n(arrivals, cuda::kArrivalCounters, 0u);
  room.run([&] {
    ops::order_codes_cuda(nullptr, weight.matrix, columns, count, words);
    ops::dequant_matmul_cuda(nullptr, {reinterpret_cast<std::byte*>(x), dtype, m, k, 2 * k + 1, 2}, ordered,
                             nullptr, {reinterpret_cast<std::byte*>(y), DType::float32, m, n, n, 1}, false,
                             workspace, arrivals);
  });
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      double magnitude = 0;
      for (int64_t p = 0; p < k; ++p) {
        const auto at = static_cast<size_t>(j * groups + index[static_cast<size_t>(p)]);
        const double value = (codes[static_cast<size_t>(j * k + p)] - zeros[at]) * double{scales[at]};
        sum += values[static_cast<size_t>(i * k + p)] * value;
        magnitude += std::abs(values[static_cast<size_t>(i * k + p)] * value);
      }
      const double error = std::abs(double{y[i * n + j]} - sum);
      if (error <= (exact ? 0 : 4 * 0x1p-24 * std::sqrt(static_cast<double>(k) + 1) * magnitude)) continue;
      report(__FILE__, __LINE__,
             show(m) + " x " + show(n) + " x " + show(k) + ", " + show(kind.bits) + " bits: y(" + show(i) +
                 ", " + show(j) + ") is " + show(y[i * n + j]) + ", expected " + show(sum));
      return false;
    }
  return true;
}

constexpr Kind kKinds[] = {{4, true, 32},  {4, false, 64}, {3, false, 32},       {2, true, 64},
                           {8, false, 32}, {3, true, 128}, {4, false, 64, false}};

TEST("simt: products whose columns name their groups are exact on whole numbers, in 16 bits") {
  std::vector<int64_t> rows{31, 32, 33, 63, 64, 65, 127, 128, 129};
  for (int64_t m = 1; m <= 17; ++m) rows.push_back(m);
  int turn = 0;
  for (const int64_t m : rows) {
    const DType dtype = turn % 2 ? DType::float16 : DType::bfloat16;
    CHECK(product_is_right(kKinds[turn % 7], {m, m > 33 ? 9 : 66, 256}, dtype, true));
    CHECK(product_is_right(kKinds[turn % 7], {m, 33, 200}, dtype, false));
    ++turn;
  }
  CHECK(product_is_right({4, true, 128}, {2, 70, 1100}, DType::float16, true));
  CHECK(product_is_right({4, true, 32}, {1, 1, 33}, DType::float16, true));
}

TEST("simt: columns in the order of groups are right in every order of threads and arrivals") {
  const auto body = [] { return product_is_right({3, false, 64}, {5, 9, 150}, DType::float16, true); };
  require_right(__FILE__, __LINE__, every_order(1, 2), body);
}

}  // namespace
