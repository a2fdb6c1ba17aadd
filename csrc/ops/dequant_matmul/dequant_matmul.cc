#include "ops/dequant_matmul/dequant_matmul.h"

#include <algorithm>

#include "core/error.h"
#include "numerics/float8.h"
#include "ops/bitpack/bitpack.h"
#include "ops/copy/convert.h"
#include "ops/dequant_matmul/coded_factor.h"
#include "ops/dequant_matmul/strip_factor.h"
#include "ops/quantize/code_book_of.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// Groups that end between units of codes would share a step of the kernels.
bool groups_fit(int64_t group, int64_t in, int bits) { return group >= in || group % unit_codes(bits) == 0; }

/// Columns that share constants.
int64_t group_of(const IntScheme& s, int64_t in) {
  const int64_t row = std::max<int64_t>(1, in);
  return s.granularity == Granularity::group ? std::min(s.group_size, row) : row;
}

constexpr const char* kInt8Needs =
    "compute: int8 needs a weight of integers of at most 8 bits whose scales are per tensor, per row or in "
    "groups of whole words, in order";

// Sums of a group fit into int32: 2^15 columns of 255 * 127 and as much again for the zero point.
constexpr int64_t kMostInt8Columns = int64_t{1} << 15;
constexpr const char* kInt8Overflows =
    "compute: int8 sums over more than 32768 columns of one scale could overflow";

bool by_words(const IntScheme& s, bool indexed, int64_t in) {
  const bool in_order = s.granularity != Granularity::column && !indexed;
  return s.bits <= kMostBits && in_order && groups_fit(group_of(s, in), in, s.bits);
}

const uint32_t* as_words(const uint8_t* packed) { return reinterpret_cast<const uint32_t*>(packed); }

WeightProducts coded(CodedWeight weight) {
  WeightProducts products{true, weight.out, weight.words_per_row, 0, {}};
  if (weight.scales.form == GroupScales::Form::tiled) products.groups = weight.groups();
  products.factor = [weight = std::move(weight)](Operand operand, DType scale_dtype) {
    if (operand == Operand::int8 && !weight.integer)
      fail(ErrorCode::unsupported, "compute: int8 needs a weight of integers");
    if (operand == Operand::int8 && weight.group > kMostInt8Columns)
      fail(ErrorCode::unsupported, kInt8Overflows);
    CodedWeight narrowed = weight;
    if (narrowed.scales.form == GroupScales::Form::tiled) narrowed.scales.dtype = scale_dtype;
    return make_coded_factor(std::move(narrowed), operand);
  };
  return products;
}

WeightProducts by_strips(int64_t out, int64_t in, int64_t words, ReadStrip read) {
  WeightProducts products{false, 1, words, 0, {}};
  products.factor = [=](Operand operand, DType) {
    if (operand == Operand::int8) fail(ErrorCode::unsupported, kInt8Needs);
    return make_strip_factor(out, in, read, operand == Operand::bfloat16);
  };
  return products;
}

CodedWeight eight_bit(const uint8_t* packed, int64_t out, int64_t in) {
  CodedWeight w;
  w.out = out;
  w.in = in;
  w.bits = 8;
  w.words = as_words(packed);
  w.words_per_row = packed_row_bytes(in, 8) / 4;
  w.group = std::max<int64_t>(1, in);
  w.table.resize(256);
  return w;
}

template <class Decode>
std::vector<float> table_of_codes(int bits, Decode&& decode) {
  std::vector<float> table;
  for (int code = 0; code < 1 << bits; ++code) table.push_back(decode(code));
  return table;
}

std::vector<float> table_of(MxElement element) {
  return table_of_codes(mx_element_bits(element), [=](int code) {
    const auto bits = static_cast<uint8_t>(code);
    switch (element) {
      case MxElement::e4m3:
        return numerics::float_from_e4m3(bits);
      case MxElement::e5m2:
        return numerics::float_from_e5m2(bits);
      case MxElement::e3m2:
        return numerics::decode_finite<numerics::kE3M2>(bits);
      case MxElement::e2m3:
        return numerics::decode_finite<numerics::kE2M3>(bits);
      case MxElement::e2m1:
        return numerics::decode_finite<numerics::kE2M1>(bits);
      default:
        return static_cast<float>(static_cast<int8_t>(bits)) / 64;
    }
  });
}

/// One thread's loop: strips are read inside a parallel one.
ThreadPool& serial() {
  static ThreadPool pool(1);
  return pool;
}

std::byte* bytes_of(float* values) { return reinterpret_cast<std::byte*>(values); }

}  // namespace

const char* int8_obstacle(const IntScheme& s, bool indexed, int64_t in) {
  if (!by_words(s, indexed, in)) return kInt8Needs;
  return group_of(s, in) > kMostInt8Columns ? kInt8Overflows : nullptr;
}

const char* llm_int8_obstacle(int64_t in) { return in > kMostInt8Columns ? kInt8Overflows : nullptr; }

WeightProducts int_products(const IntScheme& s, const ConstIntStored& stored, int64_t out, int64_t in) {
  const int64_t words = packed_row_bytes(in, s.bits) / 4;
  const int64_t group = group_of(s, in);
  if (by_words(s, stored.group_index != nullptr, in)) {
    CodedWeight w;
    w.out = out;
    w.in = in;
    w.bits = s.bits;
    w.words = as_words(stored.packed);
    w.words_per_row = words;
    w.decoding = s.bits <= 4 ? Decoding::permutation : Decoding::conversion;
    w.integer = true;
    const int offset = s.symmetric ? 1 << (s.bits - 1) : 0;
    w.table = table_of_codes(s.bits, [=](int code) { return static_cast<float>(code - offset); });
    w.zeros = stored.zeros;
    w.group = group;
    w.scales.form =
        s.granularity == Granularity::tensor ? GroupScales::Form::per_tensor : GroupScales::Form::tiled;
    w.scales.floats = stored.scales;
    return coded(std::move(w));
  }
  const int64_t groups = s.granularity == Granularity::group ? (in + group - 1) / group : 1;
  const bool of_rows = s.granularity == Granularity::group || s.granularity == Granularity::row;
  return by_strips(out, in, out * words, [=](int64_t first, int64_t rows, float* values) {
    ConstIntStored part = stored;
    part.packed += first * words * 4;
    if (of_rows) part.scales += first * groups;
    if (of_rows && part.zeros != nullptr) part.zeros += first * groups;
    dequantize_int(serial(), s, part, rows, in, DType::float32, bytes_of(values));
    return values;
  });
}

WeightProducts codebook_products(const CodebookScheme& s, const ConstCodebookStored& stored, int64_t out,
                                 int64_t in) {
  const int bits = bits_of(s.book);
  const bool rows_of_words = in * bits % 32 == 0;
  const bool whole_blocks = in % s.block_size == 0 && groups_fit(s.block_size, in, bits);
  if (rows_of_words && whole_blocks) {
    CodedWeight w;
    w.out = out;
    w.in = in;
    w.bits = bits;
    w.words = as_words(stored.packed);
    w.words_per_row = in * bits / 32;
    w.decoding = bits == 8 ? Decoding::gather : Decoding::permutation;
    w.table = table_of_codes(bits, [&](int code) {
      return bits == 8 ? numerics::kDynamic8.values[code] : table_of(s.book).decoded[code];
    });
    w.group = s.block_size;
    w.scales.floats = stored.absmax;
    if (s.double_quant)
      w.scales = {GroupScales::Form::nested,  stored.absmax_scales, stored.absmax_codes, nullptr,
                  numerics::kDynamic8.values, *stored.absmax_offset};
    return coded(std::move(w));
  }
  // Blocks run across rows: whole pieces around a strip are decoded.
  auto absmax = std::make_shared<std::vector<float>>();
  if (s.double_quant) {
    absmax->resize(static_cast<size_t>(block_count(s, out, in)));
    decode_nested_absmax(stored.absmax_codes, stored.absmax_scales, *stored.absmax_offset,
                         static_cast<int64_t>(absmax->size()), absmax->data());
  }
  CodebookScheme plain = s;
  plain.double_quant = false;
  plain.block_size = std::min(s.block_size, std::max<int64_t>(1, out * in));
  const int64_t unit = piece_unit(plain);
  return by_strips(
      out, in, packed_row_bytes(out * in, bits) / 4, [=](int64_t first, int64_t rows, float* values) {
        const int64_t begin = first * in / unit * unit;
        const int64_t end = std::min(((first + rows) * in + unit - 1) / unit * unit, out * in);
        const float* const scales = s.double_quant ? absmax->data() : stored.absmax;
        const ConstCodebookStored part{stored.packed + begin * bits / 8, scales + begin / plain.block_size,
                                       nullptr, nullptr, nullptr};
        float* const wide = thread_buffer<float>(Slot::strip, end - begin);
        dequantize_codebook(serial(), plain, part, 1, end - begin, DType::float32, bytes_of(wide));
        std::copy_n(wide + (first * in - begin), rows * in, values);
        return values;
      });
}

WeightProducts fp8_products(const Fp8Scheme& s, const uint8_t* packed, const float* scales, int64_t out,
                            int64_t in) {
  CodedWeight w = eight_bit(packed, out, in);
  w.decoding = Decoding::gather;
  w.table = table_of(s.format == Float8::e4m3 ? MxElement::e4m3 : MxElement::e5m2);
  w.scales.form = s.per_row ? GroupScales::Form::tiled : GroupScales::Form::per_tensor;
  w.scales.floats = scales;
  return coded(std::move(w));
}

WeightProducts mx_products(const MxScheme& s, const uint8_t* packed, const uint8_t* scales,
                           const float* pre_scale, int64_t out, int64_t in) {
  CodedWeight w;
  w.out = out;
  w.in = in;
  w.bits = mx_element_bits(s.element);
  w.words = as_words(packed);
  w.words_per_row = packed_row_bytes(in, w.bits) / 4;
  w.decoding = w.bits <= 4 ? Decoding::permutation : Decoding::gather;
  w.table = table_of(s.element);
  w.group = kMxBlock;
  w.scales = {GroupScales::Form::e8m0, nullptr, scales, pre_scale, nullptr, 0};
  return coded(std::move(w));
}

WeightProducts llm_int8_products(const uint8_t* packed, const float* absmax, int64_t out, int64_t in) {
  CodedWeight w = eight_bit(packed, out, in);
  w.decoding = Decoding::conversion;
  w.integer = true;
  w.table = table_of_codes(8, [](int code) { return static_cast<float>(code - 128); });
  w.scales.floats = absmax;
  w.scales.divisor = 127;
  return coded(std::move(w));
}

}  // namespace quantaria::ops
