#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "core/error.h"
#include "cpu/isa.h"
#include "numerics/bfloat16.h"
#include "numerics/half.h"
#include "ops/bitpack/bitpack.h"
#include "ops/quantize/quantize.h"

/// Weights with every trap in them, and runs of one computation on all instruction sets and thread counts.
namespace quantaria::test {

/// A row-major weight as float32 and as it is stored.
struct Weight {
  int64_t rows;
  int64_t cols;
  std::vector<float> values;  // [rows, cols], what the stored elements are worth
  DType dtype;
  bool transposed;
  std::vector<uint8_t> stored;

  ConstMatrix view() const {
    return {reinterpret_cast<const std::byte*>(stored.data()),
            dtype,
            rows,
            cols,
            transposed ? 1 : cols,
            transposed ? rows : 1};
  }
  float at(int64_t r, int64_t c) const { return values[static_cast<size_t>(r * cols + c)]; }
};

inline void store_values(Weight& w) {
  w.stored.assign(static_cast<size_t>(w.rows * w.cols * size_of(w.dtype)), 0);
  for (int64_t r = 0; r < w.rows; ++r) {
    for (int64_t c = 0; c < w.cols; ++c) {
      float& value = w.values[static_cast<size_t>(r * w.cols + c)];
      const auto at =
          static_cast<size_t>((w.transposed ? c * w.rows + r : r * w.cols + c) * size_of(w.dtype));
      if (w.dtype == DType::float32) {
        std::memcpy(&w.stored[at], &value, 4);
        continue;
      }
      const bool half = w.dtype == DType::float16;
      const uint16_t bits = half ? numerics::half_from_float(value) : numerics::bfloat16_from_float(value);
      value = half ? numerics::float_from_half(bits) : numerics::float_from_bfloat16(bits);
      std::memcpy(&w.stored[at], &bits, 2);
    }
  }
}

/// Normal values; the first rows hold zeros, signed zeros, constants, ties of 4-bit grids, one-signed
/// values, subnormals, and one outlier.
inline Weight make_weight(int64_t rows, int64_t cols, DType dtype, bool transposed, uint32_t seed = 1) {
  Weight w{rows, cols, std::vector<float>(static_cast<size_t>(rows * cols)), dtype, transposed, {}};
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.05f);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const float x = normal(random);
      const float special[] = {0.0f,
                               c % 2 ? -0.0f : 0.0f,
                               0.37f,
                               -0.5f,
                               static_cast<float>(c % 15 - 7) / 2,
                               std::abs(x),
                               -std::abs(x),
                               x * 1e-38f,
                               c == cols / 2 ? 1e4f : x,
                               std::ldexp(x, -140)};
      w.values[static_cast<size_t>(r * cols + c)] = r < 10 ? special[r] : x;
    }
  }
  store_values(w);
  return w;
}

struct Shape {
  int64_t rows;
  int64_t cols;
};
inline constexpr Shape kShapes[] = {{1, 1},    {12, 1},   {12, 33}, {13, 127},
                                    {70, 129}, {40, 256}, {0, 64},  {5, 0}};

/// Runs body(pool) for each instruction set of this machine with one and with two threads.
template <class Body>
void on_every_machine(const Body& body) {
  for (int isa = 0; isa <= static_cast<int>(detected_isa()); ++isa) {
    select_isa(static_cast<Isa>(isa));
    for (const int threads : {1, 2}) {
      ThreadPool pool(threads);
      body(pool);
    }
  }
  select_isa(detected_isa());
}

/// body(weight) for each shape, dtype and orientation.
template <class Body>
void for_each_weight(const Body& body) {
  for (const Shape shape : kShapes)
    for (const DType dtype : {DType::float32, DType::float16, DType::bfloat16})
      for (const bool transposed : {false, true})
        body(make_weight(shape.rows, shape.cols, dtype, transposed));
}

/// Bits of floats, so that NaN and signed zeros compare.
inline std::vector<uint32_t> bits_of_all(const std::vector<float>& values) {
  std::vector<uint32_t> bits(values.size());
  if (!values.empty()) std::memcpy(bits.data(), values.data(), values.size() * sizeof(float));
  return bits;
}

/// The message of the Error that body throws; fails if it throws none.
template <class Body>
std::string error_of(const Body& body) {
  try {
    body();
  } catch (const Error& error) {
    CHECK(error.code() == ErrorCode::argument);
    return error.what();
  }
  CHECK(!"an error was expected");
  return {};
}

/// Sums of float32 squares in lanes of at most 2^12 terms: relative error under 2^12 * 2^-24, doubled for
/// the squares themselves.
inline bool sums_close(double actual, double expected) {
  return std::abs(actual - expected) <= std::ldexp(expected, -11) + 1e-36;
}

}  // namespace quantaria::test
