#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "ops/bitpack/bitpack.h"
#include "ops/dequant_matmul/dequant_matmul_cuda.h"
#include "ops/dequant_matmul/int8_rows.cuh"
#include "ops/llm_int8/llm_int8.h"
#include "ops/llm_int8/llm_int8_cuda.h"
#include "simt_room.h"

// Integer products on tensor cores and LLM.int8, emulated.
namespace {

using namespace quantaria;
using namespace quantaria::test;

struct Case {
  int64_t m, n, k;
};

std::vector<float> normals(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

/// x as its dtype holds it, in device memory, and the values.
struct Activations {
  DType dtype;
  int64_t rows, cols;
  std::vector<float> values;
  std::byte* data;

  Activations(DeviceRoom& room, DType type, int64_t m, int64_t k, std::vector<float> given)
      : dtype(type), rows(m), cols(k), values(std::move(given)) {
    data = room.take<std::byte>(m * k * size_of(type));
    for (size_t i = 0; i < values.size(); ++i) {
      if (type == DType::float16)
        values[i] = put<simt::Half>(i);
      else if (type == DType::bfloat16)
        values[i] = put<simt::Bfloat16>(i);
      else
        values[i] = put<float>(i);
    }
  }
  template <class T>
  float put(size_t i) const {
    auto* const to = reinterpret_cast<T*>(data) + i;
    *to = simt::from_float<T>(values[i]);
    return simt::to_float(*to);
  }
  ConstMatrix matrix() const { return {data, dtype, rows, cols, cols, 1}; }
  float at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

/// Where a product is written: poisoned, rows apart by more than their columns.
struct Result {
  DType dtype;
  int64_t rows, cols, stride;
  std::byte* data;

  Result(DeviceRoom& room, DType type, int64_t m, int64_t n)
      : dtype(type), rows(m), cols(n), stride(n % 2 == 0 ? (n + 7) / 8 * 8 : n) {
    data = room.take<std::byte>(m * stride * size_of(type));
  }
  Matrix matrix() const { return {data, dtype, rows, cols, stride, 1}; }

  /// Whether (i, j) is `expected`, rounded once.
  bool is(int64_t i, int64_t j, float expected) const {
    if (dtype == DType::float16)
      return at<simt::Half>(i, j).bits == simt::from_float<simt::Half>(expected).bits;
    if (dtype == DType::bfloat16)
      return at<simt::Bfloat16>(i, j).bits == simt::from_float<simt::Bfloat16>(expected).bits;
    return at<float>(i, j) == expected;
  }
  float value(int64_t i, int64_t j) const {
    if (dtype == DType::float16) return simt::to_float(at<simt::Half>(i, j));
    if (dtype == DType::bfloat16) return simt::to_float(at<simt::Bfloat16>(i, j));
    return at<float>(i, j);
  }

 private:
  template <class T>
  T at(int64_t i, int64_t j) const {
    return reinterpret_cast<const T*>(data)[i * stride + j];
  }
};

/// What the launches of a product choose by its size, or else tiles of so many rows.
constexpr int kChosenRows = 0;

struct Kind {
  int bits;
  bool symmetric;
  int64_t group;
};

/// The sums of one product as the contract says, in float64 but for what it rounds: codes and scales of the
/// activations in float32, group after group.
bool product_is_right(const Kind& kind, const Case& size, DType dtype, int tile_rows = kChosenRows) {
  DeviceRoom room;
  const auto [m, n, k] = size;
  std::mt19937 random(7);
  ops::IntScheme scheme;
  scheme.bits = kind.bits;
  scheme.symmetric = kind.symmetric;
  scheme.group_size = kind.group;
  const int64_t groups = (k + kind.group - 1) / kind.group;
  const int offset = kind.symmetric ? 1 << (kind.bits - 1) : 0;
  std::vector<uint8_t> codes(static_cast<size_t>(n * k));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(random() % (1u << kind.bits));
  std::vector<uint8_t> packed(static_cast<size_t>(n * ops::packed_row_bytes(k, kind.bits)));
  ThreadPool serial(1);
  ops::pack_bits(serial, {reinterpret_cast<const std::byte*>(codes.data()), DType::uint8, n, k, k, 1},
                 kind.bits, 0, packed.data());
  std::vector<float> scales(static_cast<size_t>(n * groups));
  for (float& scale : scales) scale = 0.01f + static_cast<float>(random() % 1000) * 0x1p-16f;
  std::vector<int32_t> zeros(static_cast<size_t>(kind.symmetric ? 0 : n * groups));
  for (int32_t& zero : zeros) zero = static_cast<int32_t>(random() % (1u << kind.bits));
  const ops::DeviceWeight weight = ops::coded_int(
      scheme, {room.copy(packed), room.copy(scales), kind.symmetric ? nullptr : room.copy(zeros)}, n, k);
  const Activations x(room, dtype, m, k, normals(m * k, 3));
  const Result y(room, dtype, m, n);
  std::vector<float> biases(static_cast<size_t>(n));
  for (int64_t j = 0; j < n; ++j) biases[static_cast<size_t>(j)] = static_cast<float>(j % 9 - 4);
  const ConstMatrix bias{reinterpret_cast<std::byte*>(room.copy(biases)), DType::float32, 1, n, n, 1};
  const bool biased = m % 2 == 1;
  auto* const workspace = room.take<std::byte>(ops::int8_matmul_workspace(m, weight.matrix));
  room.run([&] {
    if (tile_rows == kChosenRows)
      return ops::int8_matmul_cuda(nullptr, x.matrix(), weight, biased ? &bias : nullptr, y.matrix(),
                                   workspace);
    const ops::Int8Rows rows = ops::int8_rows_in(workspace, m, weight.matrix);
    ops::quantize_int8_rows(nullptr, x.matrix(), rows);
    ops::launch_int8_product({nullptr, rows, nullptr, weight, nullptr, ops::tiles_of_rows(m, tile_rows),
                              ops::epilogue_of(biased ? &bias : nullptr, y.matrix()), tile_rows});
  });
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      float expected = 0;
      for (int64_t g = 0; g < groups; ++g) {
        const int64_t end = std::min(k, (g + 1) * kind.group);
        float most = 0;
        for (int64_t c = g * kind.group; c < end; ++c) most = std::max(most, std::abs(x.at(i, c)));
        int64_t sum = 0;
        int64_t of_row = 0;
        for (int64_t c = g * kind.group; c < end; ++c) {
          const auto code = static_cast<int64_t>(std::nearbyint(x.at(i, c) * (127.0f / most)));
          sum += code * (codes[static_cast<size_t>(j * k + c)] - offset);
          of_row += code;
        }
        const auto at = static_cast<size_t>(j * groups + g);
        float plain = static_cast<float>(sum);
        if (!kind.symmetric)
          plain = std::fma(-static_cast<float>(zeros[at]), static_cast<float>(of_row), plain);
        expected = std::fma(plain * (most / 127.0f), scales[at], expected);
      }
      if (biased) expected += biases[static_cast<size_t>(j)];
      if (y.is(i, j, expected)) continue;
      report(__FILE__, __LINE__,
             show(m) + " x " + show(n) + " x " + show(k) + ", " + show(kind.bits) + " bits: y(" + show(i) +
                 ", " + show(j) + ") is " + show(y.value(i, j)) + ", expected " + show(expected));
      return false;
    }
  return true;
}

TEST("simt: int8 products are exact inside a group, of every width, group and shape") {
  constexpr DType kFloats[] = {DType::float32, DType::float16, DType::bfloat16};
  constexpr Kind kKinds[] = {{4, true, 32}, {4, false, 8},   {8, false, 64}, {8, true, 12}, {3, false, 32},
                             {5, true, 32}, {7, false, 128}, {2, true, 96},  {6, false, 32}};
  int turn = 0;
  for (const Kind& kind : kKinds)
    for (const Case& size : {Case{1, 1, 1}, {3, 33, 40}, {17, 65, 200}, {66, 130, 96}})
      CHECK(product_is_right(kind, size, kFloats[++turn % 3]));
  for (const int64_t m : swept_rows())
    for (const Kind& kind : kKinds)
      for (const DType dtype : kFloats) CHECK(product_is_right(kind, {m, 70, 136}, dtype));
}

TEST(
    "simt: int8 products of rows that are one group, or groups of many runs, are exact in tiles of every "
    "size") {
  constexpr Kind kKinds[] = {{4, true, 4096},  {4, false, 4096}, {8, true, 4096}, {8, false, 4096},
                             {5, false, 4096}, {4, false, 128},  {8, true, 64},   {4, true, 256},
                             {8, false, 128},  {8, true, 128},   {4, true, 128},  {8, true, 160}};
  constexpr DType kFloats[] = {DType::float16, DType::bfloat16, DType::float32};
  int turn = 0;
  for (const Kind& kind : kKinds)
    for (const Case& size : {Case{16, 31, 416}, {33, 63, 544}, {65, 129, 72}})
      CHECK(product_is_right(kind, size, kFloats[++turn % 3]));
  for (const int64_t group : {4096, 128})
    for (const int bits : {4, 8})
      for (const Case& size : {Case{127, 129, 320}, {129, 128, 104}, {64, 70, 32}, {1, 8, 544}})
        CHECK(product_is_right({bits, turn % 2 == 0, group}, size, kFloats[++turn % 3], 128));
}

/// As many as an A100 has multiprocessors, so that tiles are not the narrow ones.
constexpr Case kManyTiles{129, 36 * 64, 40};

TEST("simt: int8 products of many tiles of 64 x 64 are exact") {
  CHECK(product_is_right({4, true, 4096}, kManyTiles, DType::float16));
  CHECK(product_is_right({8, false, 4096}, kManyTiles, DType::bfloat16));
  for (const int bits : {4, 8})
    CHECK(product_is_right({bits, bits == 8, 128}, {kManyTiles.m, kManyTiles.n, 160}, DType::float16));
}

/// Activations with outliers in some columns; whole numbers, whose codes are themselves.
/// `outliers` columns of them, or some in all columns.
constexpr int64_t kAnywhere = -1;
bool llm_int8_is_right(const Case& size, DType dtype, float threshold, int64_t outliers = kAnywhere,
                       int tile_rows = kChosenRows) {
  DeviceRoom room;
  const auto [m, n, k] = size;
  std::mt19937 random(5);
  std::vector<float> values(static_cast<size_t>(m * k));
  for (int64_t i = 0; i < m * k; ++i) {
    float& value = values[static_cast<size_t>(i)];
    value = static_cast<float>(static_cast<int>(random() % 41) - 20);
    if (i % k == 0) value = 127;
    if (outliers == kAnywhere && random() % 50 == 0 && i % k != 0) value = 200;
  }
  for (int64_t c = 0; c < outliers; ++c) values[static_cast<size_t>(c % m * k + 2 + 3 * c)] = 200;
  std::vector<uint8_t> codes(static_cast<size_t>(n * k));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(108 + random() % 41);
  const int64_t row_bytes = ops::packed_row_bytes(k, 8);
  std::vector<uint8_t> packed(static_cast<size_t>(n * row_bytes));
  for (int64_t j = 0; j < n; ++j) std::copy_n(codes.begin() + j * k, k, packed.begin() + j * row_bytes);
  const std::vector<float> absmax(static_cast<size_t>(n), 127.0f);
  const ops::DeviceWeight weight = ops::coded_llm_int8(room.copy(packed), room.copy(absmax), n, k);
  const Activations x(room, dtype, m, k, values);
  const Result y(room, dtype, m, n);
  if (tile_rows == kChosenRows) {
    auto* const workspace = room.take<std::byte>(ops::llm_int8_workspace(m, weight.matrix));
    std::memset(workspace, 0, static_cast<size_t>(ops::llm_int8_zeroed(weight.matrix)));
    room.run([&] {
      ops::llm_int8_matmul_cuda(nullptr, x.matrix(), threshold, weight, nullptr, y.matrix(), workspace);
    });
  } else {
    ops::Int8Rows rows =
        ops::int8_rows_in(room.take<std::byte>(ops::int8_rows_bytes(m, weight.matrix)), m, weight.matrix);
    rows.scale_divisor = 127;
    CHECK_EQ(rows.row_bytes, k);
    auto* const words = reinterpret_cast<uint32_t*>(room.zeros((k + 31) / 32 * 4));
    room.run([&] {
      ops::outlier_words_cuda(nullptr, x.matrix(), threshold, words);
      ops::quantize_activations_cuda(nullptr, x.matrix(), threshold, words, rows.scales, rows.codes);
    });
    std::vector<int32_t> columns;
    for (int32_t c = 0; c < k; ++c)
      if ((words[c / 32] >> c % 32 & 1) != 0) columns.push_back(c);
    const std::vector<int32_t> count{static_cast<int32_t>(columns.size())};
    const ops::OutlierColumns apart{x.matrix(), room.copy(columns), room.copy(count)};
    room.run([&] {
      ops::launch_int8_product({nullptr, rows, &apart, weight, nullptr, ops::tiles_of_rows(m, tile_rows),
                                ops::epilogue_of(nullptr, y.matrix()), tile_rows});
    });
  }
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < k; ++c)
        sum += double{x.at(i, c)} * (codes[static_cast<size_t>(j * k + c)] - 128);
      if (y.is(i, j, static_cast<float>(sum))) continue;  // below 2^24
      report(__FILE__, __LINE__,
             "y(" + show(i) + ", " + show(j) + ") is " + show(y.value(i, j)) + ", expected " + show(sum));
      return false;
    }
  return true;
}

TEST("simt: LLM.int8 of whole numbers is exact, outlier columns and all") {
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
    for (const Case& size : {Case{1, 33, 40}, {17, 65, 200}, {66, 70, 96}, {2, 3, 9000}})
      CHECK(llm_int8_is_right(size, dtype, 150));
  for (const int64_t m : swept_rows())
    for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
      CHECK(llm_int8_is_right({m, 70, 200}, dtype, 150));
}

TEST("simt: LLM.int8 is exact in tiles of every size with no, one, sixteen and seventeen outlier columns") {
  for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
    for (const int64_t outliers : thinned(std::vector<int64_t>{0, 1, 17, 16}, 2)) {
      CHECK(llm_int8_is_right({9, 33, 160}, dtype, 150, outliers));
      CHECK(llm_int8_is_right({63, 66, 416}, dtype, 150, outliers));
      CHECK(llm_int8_is_right({65, 129, 96}, dtype, 150, outliers, 128));
      CHECK(llm_int8_is_right({129, 72, 320}, dtype, 150, outliers, 128));
    }
}

TEST("simt: LLM.int8 of many tiles of 64 x 64 is exact") {
  CHECK(llm_int8_is_right(kManyTiles, DType::float16, 150, 3));
}

/// Against the functions of the CPU, with columns beyond what a block lists at once.
bool split_is_right() {
  DeviceRoom room;
  constexpr int64_t kRows = 2;
  constexpr int64_t kCols = 9000;
  std::vector<float> values = normals(kRows * kCols, 3);
  for (size_t i = 0; i < values.size(); i += 37) values[i] = 9;
  const Activations x(room, DType::float32, kRows, kCols, values);
  ThreadPool serial(1);
  const ConstMatrix here{
      reinterpret_cast<const std::byte*>(values.data()), DType::float32, kRows, kCols, kCols, 1};
  std::vector<uint8_t> mask(kCols);
  ops::outlier_mask(serial, here, 6, mask.data());
  std::vector<float> absmax(kRows);
  std::vector<int8_t> codes(kRows * kCols);
  ops::quantize_activations(serial, here, 6, mask.data(), absmax.data(), codes.data(), kCols);
  auto* const words = reinterpret_cast<uint32_t*>(room.zeros((kCols + 31) / 32 * 4));
  auto* const there_absmax = room.take<float>(kRows);
  auto* const there_codes = room.take<int8_t>(kRows * kCols);
  room.run([&] {
    ops::outlier_words_cuda(nullptr, x.matrix(), 6, words);
    ops::quantize_activations_cuda(nullptr, x.matrix(), 6, words, there_absmax, there_codes);
  });
  for (int64_t c = 0; c < kCols; ++c)
    if ((words[c / 32] >> c % 32 & 1) != mask[static_cast<size_t>(c)]) return false;
  return same_bits(there_absmax, absmax) && same_bits(there_codes, codes);
}

TEST(
    "simt: integer products and LLM.int8 are right in every order of threads, and need each barrier and "
    "wait") {
  // Four steps: results take the place of columns that the last one reads.
  require_each_sync(__FILE__, __LINE__,
                    {[] { return product_is_right({4, false, 32}, {20, 70, 400}, DType::float16); },
                     [] { return product_is_right({8, true, 4096}, {17, 33, 400}, DType::bfloat16); },
                     [] { return product_is_right({4, true, 4096}, {65, 72, 256}, DType::float32, 128); },
                     [] { return product_is_right({4, false, 128}, {5, 40, 400}, DType::float16); },
                     [] { return product_is_right({8, true, 128}, {65, 72, 400}, DType::bfloat16, 128); },
                     [] { return llm_int8_is_right({17, 33, 300}, DType::bfloat16, 150); },
                     [] { return llm_int8_is_right({1, 5, 9000}, DType::float32, 150); }, split_is_right});
}

}  // namespace
