#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "cpu/isa.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"
#include "ops/copy/copy.h"

namespace {

using namespace quantaria;
using ops::copy_cast;

/// Distinct bytes at every element, by position.
std::vector<uint8_t> pattern(int64_t bytes) {
  std::vector<uint8_t> data(static_cast<size_t>(bytes));
  uint32_t state = 1;
  for (uint8_t& byte : data) byte = static_cast<uint8_t>((state = state * 1664525u + 1013904223u) >> 24);
  return data;
}

struct Layout {
  int64_t row_stride;
  int64_t col_stride;
};

void check_copy(ThreadPool& pool, DType dtype, int64_t rows, int64_t cols, Layout from, Layout to) {
  const int64_t size = size_of(dtype);
  const auto extent = [&](Layout l) { return (rows * l.row_stride + cols * l.col_stride + 1) * size; };
  const std::vector<uint8_t> source = pattern(extent(from));
  std::vector<uint8_t> target(static_cast<size_t>(extent(to)), 0xa5);
  std::vector<uint8_t> expected = target;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c)
      std::memcpy(expected.data() + (r * to.row_stride + c * to.col_stride) * size,
                  source.data() + (r * from.row_stride + c * from.col_stride) * size,
                  static_cast<size_t>(size));
  copy_cast(pool,
            {reinterpret_cast<const std::byte*>(source.data()), dtype, rows, cols, from.row_stride,
             from.col_stride},
            {reinterpret_cast<std::byte*>(target.data()), dtype, rows, cols, to.row_stride, to.col_stride});
  CHECK(target == expected);
}

TEST("a copy is byte-exact for every element size, stride pattern and shape, and writes nothing else") {
  for (const int threads : {1, 2}) {
    ThreadPool pool(threads);
    for (const DType dtype : {DType::uint8, DType::bfloat16, DType::float32, DType::int64}) {
      for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{1, 1},
                                       {3, 5},
                                       {64, 64},
                                       {129, 65},
                                       {63, 200},
                                       {1, 300},
                                       {300, 1},
                                       {257, 1100},
                                       {0, 7},
                                       {7, 0}}) {
        const Layout packed_rows{cols, 1}, wide_rows{cols + 3, 1}, columns{1, rows + 5},
            spread{2 * cols + 1, 2};
        for (const Layout from : {packed_rows, wide_rows, columns, spread})
          for (const Layout to : {packed_rows, wide_rows, columns, spread})
            check_copy(pool, dtype, rows, cols, from, to);
      }
    }
  }
}

template <class To, class From>
std::vector<To> cast_all(DType from_dtype, const std::vector<From>& from, DType to_dtype) {
  ThreadPool pool(2);
  const auto n = static_cast<int64_t>(from.size());
  std::vector<To> to(from.size(), To(0x5a));
  copy_cast(pool, {reinterpret_cast<const std::byte*>(from.data()), from_dtype, 1, n, n, 1},
            {reinterpret_cast<std::byte*>(to.data()), to_dtype, 1, n, n, 1});
  return to;
}

TEST("float to integer rounds to even, saturates, and NaN gives 0; the same on every ISA") {
  const float nan = std::nanf(""), infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> from{0.5f,      1.5f,          -0.5f,         -1.5f,          2.5f, 126.6f,
                                127.5f,    -128.5f,       -129.0f,       300.0f,         nan,  infinity,
                                -infinity, 2147483520.0f, 2147483648.0f, -2147483648.0f, 1e20f};
  for (int isa = 0; isa <= static_cast<int>(detected_isa()); ++isa) {
    select_isa(static_cast<Isa>(isa));
    CHECK_EQ(
        cast_all<int8_t>(DType::float32, from, DType::int8),
        (std::vector<int8_t>{0, 2, 0, -2, 2, 127, 127, -128, -128, 127, 0, 127, -128, 127, 127, -128, 127}));
    CHECK_EQ(cast_all<uint8_t>(DType::float32, from, DType::uint8),
             (std::vector<uint8_t>{0, 2, 0, 0, 2, 127, 128, 0, 0, 255, 0, 255, 0, 255, 255, 0, 255}));
    constexpr int32_t low = std::numeric_limits<int32_t>::min(), high = std::numeric_limits<int32_t>::max();
    CHECK_EQ(cast_all<int32_t>(DType::float32, from, DType::int32),
             (std::vector<int32_t>{0, 2, 0, -2, 2, 127, 128, -128, -129, 300, 0, high, low, 2147483520, high,
                                   low, high}));
    CHECK_EQ(cast_all<int64_t>(DType::float32, from, DType::int64)[13], int64_t{2147483520});
    CHECK_EQ(cast_all<int64_t>(DType::float32, from, DType::int64)[11], std::numeric_limits<int64_t>::max());
    CHECK_EQ(cast_all<uint8_t>(DType::float32, std::vector<float>{0.0f, -0.0f, 1e-45f, nan}, DType::boolean),
             (std::vector<uint8_t>{0, 0, 1, 1}));
  }
  select_isa(detected_isa());
}

TEST("all half and bfloat16 patterns cast to float32 and back by the scalar definition, on every ISA") {
  std::vector<uint16_t> patterns(65536);
  std::iota(patterns.begin(), patterns.end(), uint16_t{0});
  for (int isa = 0; isa <= static_cast<int>(detected_isa()); ++isa) {
    select_isa(static_cast<Isa>(isa));
    const auto halves = cast_all<float>(DType::float16, patterns, DType::float32);
    const auto brains = cast_all<float>(DType::bfloat16, patterns, DType::float32);
    const auto crossed = cast_all<uint16_t>(DType::bfloat16, patterns, DType::float16);
    int wrong = 0;
    for (size_t i = 0; i < patterns.size(); ++i) {
      const float half = numerics::float_from_half(patterns[i]),
                  brain = numerics::float_from_bfloat16(patterns[i]);
      wrong += std::memcmp(&halves[i], &half, 4) != 0;
      wrong += std::memcmp(&brains[i], &brain, 4) != 0;
      wrong += crossed[i] != numerics::half_from_float(brain);
    }
    CHECK_EQ(wrong, 0);
  }
  select_isa(detected_isa());
}

TEST("integers and bools cast exactly, between integers saturating, to float through float32") {
  const std::vector<int64_t> from{0, -1, 255, 256, -300, 16777217, int64_t{1} << 62};
  CHECK_EQ(cast_all<uint8_t>(DType::int64, from, DType::uint8),
           (std::vector<uint8_t>{0, 0, 255, 255, 0, 255, 255}));
  CHECK_EQ(cast_all<float>(DType::int64, from, DType::float32),
           (std::vector<float>{0, -1, 255, 256, -300, 16777216.0f, 0x1p62f}));
  CHECK_EQ(cast_all<float>(DType::boolean, std::vector<uint8_t>{0, 1, 7}, DType::float32),
           (std::vector<float>{0, 1, 1}));
}

TEST("a cast from a transposed source to a strided target equals the element-wise one") {
  ThreadPool pool(2);
  constexpr int64_t rows = 130, cols = 301;
  std::vector<float> source(rows * cols);
  for (size_t i = 0; i < source.size(); ++i) source[i] = std::ldexp(static_cast<float>(i % 997) - 498, -7);
  std::vector<uint16_t> target(static_cast<size_t>(rows * cols * 2), 0xa5a5);
  copy_cast(pool, {reinterpret_cast<const std::byte*>(source.data()), DType::float32, rows, cols, 1, rows},
            {reinterpret_cast<std::byte*>(target.data()), DType::bfloat16, rows, cols, 2 * cols, 2});
  int wrong = 0;
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const auto at = static_cast<size_t>(2 * (r * cols + c));
      wrong += target[at] != numerics::bfloat16_from_float(source[static_cast<size_t>(c * rows + r)]);
      wrong += target[at + 1] != 0xa5a5;
    }
  CHECK_EQ(wrong, 0);
  CHECK_THROWS(
      Error, copy_cast(pool, {reinterpret_cast<const std::byte*>(source.data()), DType::float32, 2, 2, 2, 1},
                       {reinterpret_cast<std::byte*>(target.data()), DType::bfloat16, 2, 3, 3, 1}));
}

}  // namespace
