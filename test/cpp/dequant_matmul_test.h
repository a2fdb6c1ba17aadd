#pragma once

#include <cmath>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "check.h"
#include "cpu/isa.h"
#include "numerics/code_books.h"
#include "numerics/e8m0.h"
#include "numerics/float8.h"
#include "ops/bitpack/bitpack.h"
#include "ops/dequant_matmul/dequant_matmul.h"
#include "ops/dequant_matmul/narrow_scales.h"
#include "ops/dequant_matmul/weight_tiles.h"

/// Quantized weights whose codes and constants are chosen freely, with the values that they stand for worked
/// out element by element, and products of them.
namespace quantaria::test {

/// A stored weight [out, in].
struct QuantizedWeight {
  std::string name;
  int64_t out = 0;
  int64_t in = 0;
  int bits = 0;
  int64_t group = 1;            // columns that share constants, within a row
  std::vector<uint8_t> packed;  // row after row
  std::vector<float> values;    // [out, in]
  std::vector<float> offsets;   // [out, in]: |zero point * scale|, what kernels may take off afterwards
  std::vector<float> scales;    // or absmax
  std::vector<int32_t> zeros;   // empty: none
  std::function<ops::WeightProducts(const uint8_t* packed, const float* scales, const int32_t* zeros)>
      products;

  /// Of the tensors as they lie, rows one after the other.
  ops::WeightProducts in_rows() const { return products(packed.data(), scales.data(), zeros.data()); }
  size_t at(int64_t r, int64_t c) const { return static_cast<size_t>(r * in + c); }
};

inline ops::IntScheme int_scheme(int bits, bool symmetric, ops::Granularity granularity,
                                 int64_t group = 128) {
  ops::IntScheme s;
  s.bits = bits;
  s.symmetric = symmetric;
  s.granularity = granularity;
  s.group_size = group;
  return s;
}

/// Which code stands at a row and a column.
using CodeAt = std::function<int(int64_t row, int64_t column)>;

inline CodeAt random_codes(uint32_t seed, int bits) {
  return [=](int64_t r, int64_t c) {
    std::minstd_rand random(seed + static_cast<uint32_t>(r * 7919 + c * 104729));
    random.discard(3);
    return static_cast<int>(random() >> 5 & ((1u << bits) - 1));
  };
}

/// Each row begins with another code and goes through all of them.
inline CodeAt all_codes(int bits) {
  return [=](int64_t r, int64_t c) { return static_cast<int>((r + 5 * c) & ((1 << bits) - 1)); };
}

inline std::vector<uint8_t> pack_codes(int64_t rows, int64_t columns, int bits, const CodeAt& code) {
  std::vector<int32_t> codes(static_cast<size_t>(rows * columns));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) codes[static_cast<size_t>(r * columns + c)] = code(r, c);
  std::vector<uint8_t> packed(static_cast<size_t>(rows * ops::packed_row_bytes(columns, bits)));
  ThreadPool pool(1);
  ops::pack_bits(pool,
                 {reinterpret_cast<const std::byte*>(codes.data()), DType::int32, rows, columns, columns, 1},
                 bits, 0, packed.data());
  return packed;
}

/// Values in [0.5, 1.5] / 16, or powers of two from 1/4 to 2.
inline std::vector<float> random_scales(int64_t count, uint32_t seed, bool powers_of_two) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<float> real(0.5f / 16, 1.5f / 16);
  std::uniform_int_distribution<int> power(-2, 1);
  std::vector<float> scales(static_cast<size_t>(count));
  for (float& s : scales) s = powers_of_two ? std::ldexp(1.0f, power(random)) : real(random);
  return scales;
}

inline std::string shape_name(int64_t out, int64_t in) {
  return " [" + std::to_string(out) + ", " + std::to_string(in) + "]";
}

inline QuantizedWeight int_weight(ops::IntScheme s, int64_t out, int64_t in, const CodeAt& code,
                                  uint32_t seed, bool powers_of_two = false) {
  QuantizedWeight w;
  w.name = "int" + std::to_string(s.bits) + (s.symmetric ? " symmetric" : " affine") + " granularity " +
           std::to_string(static_cast<int>(s.granularity)) + " group " + std::to_string(s.group_size) +
           shape_name(out, in);
  w.out = out;
  w.in = in;
  w.bits = s.bits;
  w.group = s.granularity == ops::Granularity::group    ? s.group_size
            : s.granularity == ops::Granularity::column ? 1
                                                        : std::max<int64_t>(1, in);
  w.packed = pack_codes(out, in, s.bits, code);
  const ops::ConstantsShape shape = ops::constants_shape(s, out, in);
  w.scales = random_scales(shape.rows * shape.cols, seed, powers_of_two);
  std::mt19937 random(seed + 1);
  std::uniform_int_distribution<int> any_zero(0, (1 << std::min(s.bits, 8)) - 1);
  if (!s.symmetric) w.zeros.resize(w.scales.size());
  for (int32_t& z : w.zeros) z = any_zero(random);
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) {
      const auto at =
          static_cast<size_t>((shape.rows == 1 ? 0 : r) * shape.cols + (shape.cols == 1 ? 0 : c / w.group));
      const int zero = s.symmetric ? 1 << (s.bits - 1) : w.zeros[at];
      const float scale = w.scales[at];
      w.values.push_back(static_cast<float>(code(r, c) - zero) * scale);
      w.offsets.push_back(static_cast<float>(zero) * scale);
    }
  w.products = [=](const uint8_t* packed, const float* scales, const int32_t* zeros) {
    return ops::int_products(s, {packed, scales, s.symmetric ? nullptr : zeros, nullptr}, out, in);
  };
  return w;
}

inline QuantizedWeight codebook_weight(ops::CodebookScheme s, int64_t out, int64_t in, const CodeAt& code,
                                       uint32_t seed) {
  const int bits = s.book == ops::Codebook::dynamic8 ? 8 : 4;
  QuantizedWeight w;
  w.name = "code book " + std::to_string(static_cast<int>(s.book)) + " block " +
           std::to_string(s.block_size) + (s.double_quant ? " nested" : "") + shape_name(out, in);
  w.out = out;
  w.in = in;
  w.bits = bits;
  w.group = s.block_size;
  w.packed = pack_codes(1, out * in, bits, [&](int64_t, int64_t i) { return code(i / in, i % in); });
  const int64_t blocks = ops::block_count(s, out, in);
  w.scales = random_scales(blocks, seed, false);
  auto nested = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(blocks));
  auto nested_scales = std::make_shared<std::vector<float>>(
      random_scales((blocks + ops::kNestedBlock - 1) / ops::kNestedBlock, seed + 1, false));
  auto offset = std::make_shared<float>(0.125f);
  if (s.double_quant) {
    for (size_t b = 0; b < nested->size(); ++b) (*nested)[b] = static_cast<uint8_t>(37 * b + seed);
    ops::decode_nested_absmax(nested->data(), nested_scales->data(), *offset, blocks, w.scales.data());
  }
  const numerics::Book16& book = s.book == ops::Codebook::fp4    ? numerics::kFp4
                                 : s.book == ops::Codebook::e3m0 ? numerics::kE3M0
                                                                 : numerics::kNf4;
  for (int64_t i = 0; i < out * in; ++i) {
    const int c = code(i / in, i % in);
    const float value = bits == 8 ? numerics::kDynamic8.values[c] : book.decoded[c];
    w.values.push_back(value * w.scales[static_cast<size_t>(i / s.block_size)]);
    w.offsets.push_back(0);
  }
  w.products = [=](const uint8_t* packed, const float* absmax, const int32_t*) {
    const bool d = s.double_quant;
    return ops::codebook_products(s,
                                  {packed, d ? nullptr : absmax, d ? nested->data() : nullptr,
                                   d ? nested_scales->data() : nullptr, d ? offset.get() : nullptr},
                                  out, in);
  };
  return w;
}

inline QuantizedWeight fp8_weight(ops::Fp8Scheme s, int64_t out, int64_t in, const CodeAt& code,
                                  uint32_t seed) {
  QuantizedWeight w;
  const bool e4m3 = s.format == ops::Float8::e4m3;
  w.name = std::string(e4m3 ? "e4m3" : "e5m2") + (s.per_row ? " row" : " tensor") + shape_name(out, in);
  w.out = out;
  w.in = in;
  w.bits = 8;
  w.group = std::max<int64_t>(1, in);
  w.packed = pack_codes(out, in, 8, code);
  w.scales = random_scales(s.per_row ? out : 1, seed, false);
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) {
      const auto bits = static_cast<uint8_t>(code(r, c));
      w.values.push_back((e4m3 ? numerics::float_from_e4m3(bits) : numerics::float_from_e5m2(bits)) *
                         w.scales[static_cast<size_t>(s.per_row ? r : 0)]);
      w.offsets.push_back(0);
    }
  w.products = [=](const uint8_t* packed, const float* scales, const int32_t*) {
    return ops::fp8_products(s, packed, scales, out, in);
  };
  return w;
}

inline float mx_value(ops::MxElement element, int code) {
  const auto bits = static_cast<uint8_t>(code);
  switch (element) {
    case ops::MxElement::e4m3:
      return numerics::float_from_e4m3(bits);
    case ops::MxElement::e5m2:
      return numerics::float_from_e5m2(bits);
    case ops::MxElement::e3m2:
      return numerics::decode_finite<numerics::kE3M2>(bits);
    case ops::MxElement::e2m3:
      return numerics::decode_finite<numerics::kE2M3>(bits);
    case ops::MxElement::e2m1:
      return numerics::decode_finite<numerics::kE2M1>(bits);
    default:
      return static_cast<float>(static_cast<int8_t>(bits)) / 64;
  }
}

inline QuantizedWeight mx_weight(ops::MxScheme s, int64_t out, int64_t in, const CodeAt& code,
                                 uint32_t seed) {
  QuantizedWeight w;
  w.name = "mx " + std::to_string(static_cast<int>(s.element)) + (s.pre_scale ? " pre-scaled" : "") +
           shape_name(out, in);
  w.out = out;
  w.in = in;
  w.bits = ops::mx_element_bits(s.element);
  w.group = ops::kMxBlock;
  w.packed = pack_codes(out, in, w.bits, code);
  const int64_t blocks = (in + ops::kMxBlock - 1) / ops::kMxBlock;
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> exponent(120, 130);
  auto scales = std::make_shared<std::vector<uint8_t>>(static_cast<size_t>(out * blocks));
  for (uint8_t& x : *scales) x = static_cast<uint8_t>(exponent(random));
  auto divisors = std::make_shared<std::vector<float>>(random_scales(out, seed, false));
  for (int64_t r = 0; r < out; ++r)
    for (int64_t c = 0; c < in; ++c) {
      const uint8_t e = (*scales)[static_cast<size_t>(r * blocks + c / ops::kMxBlock)];
      const float divisor = s.pre_scale ? (*divisors)[static_cast<size_t>(r)] : 1;
      w.values.push_back(mx_value(s.element, code(r, c)) * (numerics::float_from_e8m0(e) / divisor));
      w.offsets.push_back(0);
    }
  w.products = [=](const uint8_t* packed, const float*, const int32_t*) {
    return ops::mx_products(s, packed, scales->data(), s.pre_scale ? divisors->data() : nullptr, out, in);
  };
  return w;
}

/// A weight as right factor, its tensors in the order that products want. `narrow`: scales in 16 bits where
/// they fit.
struct StoredFactor {
  std::vector<uint8_t> packed;
  std::vector<float> scales;
  std::vector<int32_t> zeros;
  std::unique_ptr<ops::Factor> factor;

  StoredFactor(ThreadPool& pool, const QuantizedWeight& w, ops::Operand operand, bool narrow = true)
      : packed(w.packed), scales(w.scales), zeros(w.zeros) {
    const ops::WeightProducts products = w.products(packed.data(), scales.data(), zeros.data());
    DType scale_dtype = DType::float32;
    if (products.tiled) {
      const auto arrange = [&](auto* words, int64_t per_row) {
        ops::rows_to_tiles(pool, reinterpret_cast<uint32_t*>(words), products.rows, per_row);
      };
      arrange(packed.data(), products.words_per_row);
      if (products.groups > 1) {
        arrange(scales.data(), products.groups);
        if (narrow) scale_dtype = ops::narrow_scales(scales.data(), products.rows * products.groups);
      }
      if (products.groups > 1 && !zeros.empty()) arrange(zeros.data(), products.groups);
    }
    factor = products.factor(operand, scale_dtype);
  }
};

/// x [rows, in] times the weight's transpose, through poisoned memory.
inline std::vector<float> multiply(ThreadPool& pool, const QuantizedWeight& w, const std::vector<float>& x,
                                   ops::Operand operand, bool narrow = true) {
  const int64_t rows = w.in == 0 ? 0 : static_cast<int64_t>(x.size()) / w.in;
  const StoredFactor stored(pool, w, operand, narrow);
  std::vector<float> y(static_cast<size_t>(rows * w.out), -1234.5f);
  ops::linear(pool, {reinterpret_cast<const std::byte*>(x.data()), DType::float32, rows, w.in, w.in, 1},
              *stored.factor, nullptr,
              {reinterpret_cast<std::byte*>(y.data()), DType::float32, rows, w.out, w.out, 1});
  return y;
}

inline const char* name_of(ops::Operand operand) {
  return operand == ops::Operand::float32    ? "float32"
         : operand == ops::Operand::bfloat16 ? "bfloat16"
                                             : "int8";
}

/// Columns that share a scale of int8 activations.
inline int64_t activation_group(const QuantizedWeight& w) { return std::max<int64_t>(1, w.group); }

/// y against float64, at every coordinate. The bound has three parts.
///  - Rounding of sums and of products of two constants: 2^-22 sqrt(K) sum |x| (|w| + |zero * scale|), as a
///    zero point may be taken off after the sum.
///  - bfloat16: each factor is rounded by at most 2^-8 of itself, and what is under its least normal value is
///    lost.
///  - int8: each activation moves by at most half a step, absmax / 127 of its group.
inline void check_product(const QuantizedWeight& w, const std::vector<float>& x, ops::Operand operand,
                          const std::vector<float>& y, Isa isa) {
  const int64_t rows = static_cast<int64_t>(x.size()) / w.in;
  const double sums = std::ldexp(std::sqrt(static_cast<double>(w.in)), -22);
  double worst = 0;
  std::string where;
  for (int64_t i = 0; i < rows; ++i) {
    std::vector<double> step(static_cast<size_t>(w.in));
    for (int64_t first = 0; first < w.in; first += activation_group(w)) {
      const int64_t end = std::min(w.in, first + activation_group(w));
      double absmax = 0;
      for (int64_t c = first; c < end; ++c) absmax = std::max(absmax, std::fabs(double{x[w.at(i, c)]}));
      std::fill(step.begin() + first, step.begin() + end, absmax / 127);
    }
    for (int64_t j = 0; j < w.out; ++j) {
      double sum = 0;
      double bound = 0;
      for (int64_t c = 0; c < w.in; ++c) {
        const double a = x[w.at(i, c)];
        const double b = w.values[w.at(j, c)];
        sum += a * b;
        bound += sums * std::fabs(a) * (std::fabs(b) + w.offsets[w.at(j, c)]);
        if (operand == ops::Operand::bfloat16)
          bound += 0x1.01p-7 * std::fabs(a * b) + 0x1p-126 * (std::fabs(a) + std::fabs(b));
        if (operand == ops::Operand::int8)
          bound += 0x1.001p-1 * step[static_cast<size_t>(c)] * (std::fabs(b) + sums * w.offsets[w.at(j, c)]);
      }
      const double error = std::fabs(double{y[static_cast<size_t>(i * w.out + j)]} - sum);
      if (!(error <= bound) && !(error / bound <= worst)) {
        worst = error / bound;
        where = "(" + std::to_string(i) + ", " + std::to_string(j) +
                "): " + show(y[static_cast<size_t>(i * w.out + j)]) + ", expected " + show(sum) + " +- " +
                show(bound);
      }
    }
  }
  if (where.empty()) return;
  report(__FILE__, __LINE__,
         std::string(quantaria::name_of(isa)) + " " + name_of(operand) + " " + w.name + " x " +
             std::to_string(rows) + " rows at " + where);
}

inline std::vector<float> random_activations(int64_t rows, int64_t in, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(rows * in));
  for (float& value : x) value = normal(random);
  return x;
}

/// Integers of [-8, 8], and one of magnitude 127 in each group: codes of int8 activations stand for them
/// exactly.
inline std::vector<float> integer_activations(int64_t rows, const QuantizedWeight& w, uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<int> whole(-8, 8);
  std::vector<float> x(static_cast<size_t>(rows * w.in));
  for (float& value : x) value = static_cast<float>(whole(random));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t first = 0; first < w.in; first += activation_group(w)) {
      const int64_t count = std::min(activation_group(w), w.in - first);
      x[w.at(r, first + (r + first) % count)] = r % 2 == 0 ? 127.0f : -127.0f;
    }
  return x;
}

template <class Body>
void on_each_isa(Body&& body) {
  const Isa before = selected_isa();
  for (const Isa isa : kIsas) {
    if (isa > detected_isa()) break;
    select_isa(isa);
    body(isa);
  }
  select_isa(before);
}

}  // namespace quantaria::test
