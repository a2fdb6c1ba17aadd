#include <cmath>
#include <limits>
#include <random>

#include "check.h"
#include "ops/bitpack/bitpack.h"
#include "ops/dequant_matmul/dequant_matmul_cuda.h"
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

struct Kind {
  int bits;
  bool symmetric;
  int64_t group;
};

/// The sums of one product as the contract says, in float64 but for what it rounds: codes and scales of the
/// activations in float32, group after group.
bool product_is_right(const Kind& kind, const Case& size, DType dtype) {
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
  auto* const y = room.take<float>(m * n);
  auto* const workspace = room.take<std::byte>(ops::int8_matmul_workspace(m, weight.matrix));
  room.run([&] {
    ops::int8_matmul_cuda(nullptr, x.matrix(), weight, nullptr,
                          {reinterpret_cast<std::byte*>(y), DType::float32, m, n, n, 1}, workspace);
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
      if (y[i * n + j] == expected) continue;
      report(__FILE__, __LINE__,
             show(m) + " x " + show(n) + " x " + show(k) + ", " + show(kind.bits) + " bits: y(" + show(i) +
                 ", " + show(j) + ") is " + show(y[i * n + j]) + ", expected " + show(expected));
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

/// Activations with outliers in some columns; whole numbers, whose codes are themselves.
bool llm_int8_is_right(const Case& size, DType dtype, float threshold) {
  DeviceRoom room;
  const auto [m, n, k] = size;
  std::mt19937 random(5);
  std::vector<float> values(static_cast<size_t>(m * k));
  for (int64_t i = 0; i < m * k; ++i) {
    float& value = values[static_cast<size_t>(i)];
    value = static_cast<float>(static_cast<int>(random() % 41) - 20);
    if (i % k == 0) value = 127;
    if (random() % 50 == 0 && i % k != 0) value = 200;
  }
  std::vector<uint8_t> codes(static_cast<size_t>(n * k));
  for (uint8_t& code : codes) code = static_cast<uint8_t>(108 + random() % 41);
  const int64_t row_bytes = ops::packed_row_bytes(k, 8);
  std::vector<uint8_t> packed(static_cast<size_t>(n * row_bytes));
  for (int64_t j = 0; j < n; ++j) std::copy_n(codes.begin() + j * k, k, packed.begin() + j * row_bytes);
  const std::vector<float> absmax(static_cast<size_t>(n), 127.0f);
  const ops::DeviceWeight weight = ops::coded_llm_int8(room.copy(packed), room.copy(absmax), n, k);
  const Activations x(room, dtype, m, k, values);
  auto* const y = room.take<float>(m * n);
  auto* const workspace = room.take<std::byte>(ops::llm_int8_workspace(m, weight.matrix));
  std::memset(workspace, 0, static_cast<size_t>(ops::llm_int8_zeroed(weight.matrix)));
  room.run([&] {
    ops::llm_int8_matmul_cuda(nullptr, x.matrix(), threshold, weight, nullptr,
                              {reinterpret_cast<std::byte*>(y), DType::float32, m, n, n, 1}, workspace);
  });
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double sum = 0;
      for (int64_t c = 0; c < k; ++c)
        sum += double{x.at(i, c)} * (codes[static_cast<size_t>(j * k + c)] - 128);
      if (double{y[i * n + j]} == sum) continue;
      report(__FILE__, __LINE__,
             "y(" + show(i) + ", " + show(j) + ") is " + show(y[i * n + j]) + ", expected " + show(sum));
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
  require_each_sync(__FILE__, __LINE__,
                    {[] { return product_is_right({4, false, 32}, {20, 70, 200}, DType::float16); }});
  require_each_sync(__FILE__, __LINE__,
                    {[] { return llm_int8_is_right({17, 33, 300}, DType::bfloat16, 150); }});
  require_each_sync(__FILE__, __LINE__,
                    {[] { return llm_int8_is_right({1, 5, 9000}, DType::float32, 150); }});
  require_each_sync(__FILE__, __LINE__, {split_is_right});
}

}  // namespace
