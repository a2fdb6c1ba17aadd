#include "ops/dequant_matmul/coded_matrix.h"

#include <algorithm>

#include "core/error.h"
#include "numerics/float8.h"
#include "ops/bitpack/bitpack.h"
#include "ops/quantize/code_book_of.h"
#include "ops/quantize/int_grid.h"

namespace quantaria::ops {
namespace {

DeviceWeight weight_of_rows(const uint8_t* packed, int bits, int64_t out, int64_t in) {
  DeviceWeight w{};
  w.matrix.out = out;
  w.matrix.in = in;
  w.matrix.words = reinterpret_cast<const uint32_t*>(packed);
  w.matrix.bits = bits;
  w.matrix.row_bits = packed_row_bytes(in, bits) * 8;
  w.matrix.group = std::max<int64_t>(1, in);
  return w;
}

template <class Decode>
void fill(DeviceWeight& w, Decode decode) {
  for (int code = 0; code < 1 << w.matrix.bits; ++code)
    w.table.values[code] = decode(static_cast<uint8_t>(code));
}

void fill_integers(DeviceWeight& w, int offset) {
  w.matrix.first = -offset;
  if (w.matrix.bits > 8) return;
  w.matrix.table_of_integers = true;
  fill(w, [=](uint8_t code) { return static_cast<float>(code - offset); });
}

void fill_element(DeviceWeight& w, MxElement element) {
  using namespace numerics;
  switch (element) {
    case MxElement::e4m3:
      return fill(w, float_from_e4m3);
    case MxElement::e5m2:
      return fill(w, float_from_e5m2);
    case MxElement::e3m2:
      return fill(w, decode_finite<kE3M2>);
    case MxElement::e2m3:
      return fill(w, decode_finite<kE2M3>);
    case MxElement::e2m1:
      return fill(w, decode_finite<kE2M1>);
    case MxElement::int8:
      return fill(w, [](uint8_t code) { return static_cast<float>(static_cast<int8_t>(code)) / 64; });
  }
}

}  // namespace

DeviceWeight coded_int(const IntScheme& s, const ConstIntStored& stored, int64_t out, int64_t in) {
  check_scheme(s);
  DeviceWeight w = weight_of_rows(stored.packed, s.bits, out, in);
  fill_integers(w, limits_of(s).offset);
  w.matrix.floats = stored.scales;
  w.matrix.zeros = stored.zeros;
  w.matrix.index = stored.group_index;
  w.matrix.group = s.granularity == Granularity::column ? 1 : group_length(s, in);
  const ConstantsShape constants = constants_shape(s, out, in);
  w.matrix.row_step = constants.rows == 1 ? 0 : constants.cols;
  return w;
}

/// bfloat16 has all integers up to 256. Up to four bits the zero point is taken off together with 128 at
/// most; eight go by way of float32.
bool zeros_are_near(std::span<const int32_t> zeros, int bits) {
  const int32_t least = bits == 8 ? -1 : -128;
  const int32_t most = bits == 8 ? 256 : 128;
  return std::all_of(zeros.begin(), zeros.end(), [=](int32_t zero) { return zero >= least && zero <= most; });
}

DeviceWeight in_group_order(const DeviceWeight& weight, std::shared_ptr<const GroupOrder> order,
                            const int32_t* left_columns, const uint32_t* words) {
  const auto columns = static_cast<int64_t>(order->columns.size());
  DeviceWeight w = weight;
  w.matrix.words = words;
  w.matrix.index = nullptr;
  w.matrix.in = columns;
  w.matrix.row_bits = columns * w.matrix.bits;
  w.matrix.group = order->span;
  w.left_columns = left_columns;
  w.order = std::move(order);
  return w;
}

DeviceWeight coded_codebook(const CodebookScheme& s, const ConstCodebookStored& stored, int64_t out,
                            int64_t in) {
  const int bits = bits_of(s.book);
  DeviceWeight w = weight_of_rows(stored.packed, bits, out, in);
  CodedMatrix& m = w.matrix;
  m.row_bits = in * bits;
  fill(w, [&](uint8_t code) {
    return bits == 8 ? numerics::kDynamic8.values[code] : table_of(s.book).decoded[code];
  });
  m.group = s.block_size;
  m.flat = in % s.block_size != 0;
  m.row_step = in / s.block_size;
  if (!s.double_quant) {
    m.floats = stored.absmax;
    return w;
  }
  m.form = ScaleForm::nested;
  m.bytes = stored.absmax_codes;
  m.floats = stored.absmax_scales;
  m.offset = stored.absmax_offset;
  std::copy_n(numerics::kDynamic8.values, 256, w.table.nested);
  return w;
}

DeviceWeight coded_fp8(const Fp8Scheme& s, const uint8_t* packed, const float* scales, int64_t out,
                       int64_t in) {
  DeviceWeight w = weight_of_rows(packed, 8, out, in);
  fill_element(w, s.format == Float8::e4m3 ? MxElement::e4m3 : MxElement::e5m2);
  w.matrix.floats = scales;
  w.matrix.row_step = s.per_row ? 1 : 0;
  return w;
}

DeviceWeight coded_mx(const MxScheme& s, const uint8_t* packed, const uint8_t* scales, const float* pre_scale,
                      int64_t out, int64_t in) {
  DeviceWeight w = weight_of_rows(packed, mx_element_bits(s.element), out, in);
  fill_element(w, s.element);
  w.matrix.group = kMxBlock;
  w.matrix.row_step = (in + kMxBlock - 1) / kMxBlock;
  w.matrix.form = ScaleForm::e8m0;
  w.matrix.bytes = scales;
  w.matrix.row_divisors = pre_scale;
  return w;
}

DeviceWeight coded_llm_int8(const uint8_t* packed, const float* absmax, int64_t out, int64_t in) {
  DeviceWeight w = weight_of_rows(packed, 8, out, in);
  fill_integers(w, 128);
  w.matrix.floats = absmax;
  w.matrix.row_step = 1;
  w.matrix.divisor = 127;
  return w;
}

}  // namespace quantaria::ops
