#include <random>

#include "check.h"
#include "ops/bitpack/bitpack.h"
#include "ops/copy/convert.h"
#include "ops/hadamard/hadamard.h"
#include "ops/hadamard/hadamard_quantize_cuda.h"
#include "simt_room.h"

// Rows rotated and quantized in one launch, emulated: the bytes of the CPU's two operations.
namespace {

using namespace quantaria;
using namespace quantaria::test;

constexpr float kScale = 0.3f;

/// x as its dtype holds it, in device memory, and what the CPU's rotation makes of it.
struct Rotated {
  DType dtype;
  int64_t rows, n;
  std::byte* x;
  std::vector<std::byte> values;
  std::byte* verdict;

  Rotated(DeviceRoom& room, DType type, int64_t count, int64_t columns)
      : dtype(type), rows(count), n(columns), verdict(room.zeros(8)) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    std::vector<float> given(static_cast<size_t>(rows * n));
    for (float& value : given) value = normal(random);
    for (int64_t i = 0; i < n; ++i)
      given[static_cast<size_t>(i)] = rows > 2 ? 0.0f : given[static_cast<size_t>(i)];
    std::vector<std::byte> stored(static_cast<size_t>(rows * n * size_of(dtype)));
    ops::convert_row(DType::float32, reinterpret_cast<const std::byte*>(given.data()), dtype, stored.data(),
                     rows * n);
    x = room.copy(stored);
    values.resize(stored.size());
    ThreadPool serial(1);
    ops::hadamard(serial, dtype, rows, n, kScale, stored.data(), values.data());
  }
  ConstMatrix matrix() const { return {values.data(), dtype, rows, n, n, 1}; }
  ops::HadamardQuantizeCall call() const { return {nullptr, dtype, rows, n, kScale, x, verdict}; }
};

struct Kind {
  int bits;
  bool symmetric;
  int64_t group;  // 0: a scale for each row
};

bool integers_are_right(const Kind& kind, DType dtype, int64_t rows, int64_t n) {
  DeviceRoom room;
  const Rotated rotated(room, dtype, rows, n);
  ops::IntScheme scheme;
  scheme.bits = kind.bits;
  scheme.symmetric = kind.symmetric;
  scheme.granularity = kind.group == 0 ? ops::Granularity::row : ops::Granularity::group;
  scheme.group_size = kind.group;
  const int64_t count = rows * (kind.group == 0 ? 1 : (n + kind.group - 1) / kind.group);
  const int64_t bytes = rows * ops::packed_row_bytes(n, kind.bits);
  std::vector<uint8_t> packed(static_cast<size_t>(bytes));
  std::vector<float> scales(static_cast<size_t>(count));
  std::vector<int32_t> zeros(static_cast<size_t>(count));
  ThreadPool serial(1);
  ops::quantize_int(serial, rotated.matrix(), scheme,
                    {packed.data(), scales.data(), kind.symmetric ? nullptr : zeros.data()}, nullptr);
  auto* const there_packed = room.take<uint8_t>(bytes);
  auto* const there_scales = room.take<float>(count);
  auto* const there_zeros = kind.symmetric ? nullptr : room.take<int32_t>(count);
  room.run([&] {
    ops::hadamard_quantize_int_cuda(rotated.call(), scheme, {there_packed, there_scales, there_zeros});
  });
  return same_bits(there_packed, packed) && same_bits(there_scales, scales) &&
         (kind.symmetric || same_bits(there_zeros, zeros));
}

bool blocks_are_right(ops::MxElement element, DType dtype, int64_t rows, int64_t n) {
  DeviceRoom room;
  const Rotated rotated(room, dtype, rows, n);
  ops::MxScheme scheme;
  scheme.element = element;
  const int64_t count = rows * ((n + ops::kMxBlock - 1) / ops::kMxBlock);
  const int64_t bytes = rows * ops::packed_row_bytes(n, ops::mx_element_bits(element));
  std::vector<uint8_t> packed(static_cast<size_t>(bytes));
  std::vector<uint8_t> scales(static_cast<size_t>(count));
  ThreadPool serial(1);
  ops::quantize_mx(serial, rotated.matrix(), scheme, packed.data(), scales.data(), nullptr, nullptr);
  auto* const there_packed = room.take<uint8_t>(bytes);
  auto* const there_scales = room.take<uint8_t>(count);
  room.run([&] { ops::hadamard_quantize_mx_cuda(rotated.call(), scheme, there_packed, there_scales); });
  return same_bits(there_packed, packed) && same_bits(there_scales, scales);
}

constexpr DType kFloats[] = {DType::float32, DType::float16, DType::bfloat16};

TEST("simt: rotated rows become the integers of the CPU, of every width, group and size") {
  int turn = 0;
  for (const Kind& kind : {Kind{4, true, 32},
                           {4, false, 128},
                           {8, true, 0},
                           {8, false, 24},
                           {3, false, 32},
                           {2, true, 16},
                           {5, true, 40},
                           {6, false, 0},
                           {16, true, 64}})
    for (const int64_t n : {1, 2, 8, 32, 64, 256, 512, 4096, 12, 20, 40, 252, 48, 1536}) {
      const DType dtype = kFloats[++turn % 3];
      if (integers_are_right(kind, dtype, 3, n)) continue;
      report(__FILE__, __LINE__, show(kind.bits) + " bits, rows of " + show(n));
    }
  CHECK(integers_are_right({4, true, 128}, DType::float16, 1, 8192));
  CHECK(integers_are_right({4, false, 32}, DType::float32, 1, 12 * 512));
}

TEST("simt: rotated rows become the MX blocks of the CPU, of every element and size") {
  int turn = 0;
  for (const ops::MxElement element : {ops::MxElement::e4m3, ops::MxElement::e5m2, ops::MxElement::e3m2,
                                       ops::MxElement::e2m3, ops::MxElement::e2m1, ops::MxElement::int8})
    for (const int64_t n : {1, 16, 32, 64, 512, 20, 252, 1536})
      CHECK(blocks_are_right(element, kFloats[++turn % 3], 3, n));
  CHECK(blocks_are_right(ops::MxElement::e2m1, DType::bfloat16, 1, 8192));
}

TEST("simt: rotating and quantizing is right in every order of threads, and needs each barrier") {
  require_each_sync(__FILE__, __LINE__,
                    {[] { return integers_are_right({4, false, 32}, DType::float16, 2, 2048); }});
  require_each_sync(__FILE__, __LINE__,
                    {[] { return integers_are_right({8, true, 32}, DType::float32, 2, 256); }});
  require_each_sync(__FILE__, __LINE__,
                    {[] { return blocks_are_right(ops::MxElement::e2m1, DType::float32, 2, 1536); }});
}

TEST("simt: a rotated row that is not finite is told by its first element") {
  DeviceRoom room;
  std::vector<float> x(3 * 64, 1.0f);
  x[70] = __builtin_inff();
  auto* const verdict = room.zeros(8);
  ops::IntScheme scheme;
  scheme.bits = 4;
  scheme.symmetric = true;
  scheme.group_size = 32;
  auto* const given = room.copy(x);
  auto* const packed = room.take<uint8_t>(3 * 32);
  auto* const scales = room.take<float>(3 * 2);
  room.run([&] {
    ops::hadamard_quantize_int_cuda(
        {nullptr, DType::float32, 3, 64, 1.0f, reinterpret_cast<const std::byte*>(given), verdict}, scheme,
        {packed, scales, nullptr});
  });
  CHECK_EQ(*reinterpret_cast<const uint64_t*>(verdict), ~uint64_t{64});
}

}  // namespace
