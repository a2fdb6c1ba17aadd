#include <algorithm>
#include <cstring>
#include <limits>

#include "numerics/e8m0.h"
#include "ops/bitpack/bitpack.h"
#include "ops/bitpack/kernels.h"
#include "ops/quantize/mx_factors.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

struct ElementFacts {
  int bits;
  int max_exponent;  // of the largest value
};

/// In MxElement's order.
constexpr ElementFacts kElements[] = {{8, 8}, {8, 15}, {6, 4}, {6, 2}, {4, 2}, {8, 0}};

constexpr const ElementFacts& facts(MxElement element) { return kElements[static_cast<size_t>(element)]; }

constexpr MxFactors kPreScales{
    {0x1p0f,         0x1.f50766p-1f, 0x1.ea4afap-1f, 0x1.dfc974p-1f, 0x1.d5818ep-1f, 0x1.cb720ep-1f,
     0x1.c199bep-1f, 0x1.b7f77p-1f,  0x1.ae89fap-1f, 0x1.a5503cp-1f, 0x1.9c4918p-1f, 0x1.93737cp-1f,
     0x1.8ace54p-1f, 0x1.82589ap-1f, 0x1.7a1148p-1f, 0x1.71f75ep-1f, 0x1.6a09e6p-1f, 0x1.6247ecp-1f,
     0x1.5ab07ep-1f, 0x1.5342b6p-1f, 0x1.4bfdaep-1f, 0x1.44e086p-1f, 0x1.3dea64p-1f, 0x1.371a74p-1f,
     0x1.306fep-1f,  0x1.29e9ep-1f,  0x1.2387a6p-1f, 0x1.1d4874p-1f, 0x1.172b84p-1f, 0x1.11301ep-1f,
     0x1.0b5586p-1f, 0x1.059b0ep-1f}};

/// Codes of one row, eight bits each, and their scales.
struct MxRow {
  uint8_t* codes;
  uint8_t* scales;
};

/// False if the row is not finite.
bool encode_row(const MxScheme& scheme, const float* row, int64_t n, FiniteCheck& check, const MxRow& to) {
  const int64_t blocks = (n + kMxBlock - 1) / kMxBlock;
  float* const absmax = thread_buffer<float>(Slot::constants, blocks);
  if (!check.ok(range_kernels().absmax(row, n, kMxBlock, absmax))) return false;
  for (int64_t b = 0; b < blocks; ++b) to.scales[b] = mx_scale_of(scheme.element, absmax[b]);
  const MxEncoders& encoders = small_float_kernels().encode_mx[static_cast<size_t>(scheme.element)];
  encoders.by_rounding[static_cast<size_t>(scheme.rounding)](row, n, to.scales, to.codes);
  // Blocks of zeros have codes 0, without the signs.
  for (int64_t b = 0; b < blocks; ++b)
    if (absmax[b] == 0) std::memset(to.codes + b * kMxBlock, 0, kMxBlock);
  return true;
}

void scale_row(const float* row, int64_t n, float factor, float* to) {
  for (int64_t j = 0; j < n; ++j) to[j] = row[j] * factor;
}

void decode_row(const MxScheme& scheme, const uint8_t* codes, const uint8_t* scales, int64_t n,
                float pre_scale, float* row) {
  small_float_kernels().decode_mx[static_cast<size_t>(scheme.element)](codes, n, scales, row);
  if (scheme.pre_scale)
    for (int64_t j = 0; j < n; ++j) row[j] /= pre_scale;
}

/// Encodes a row under each factor and leaves the codes of the best one. Returns the factor.
float search_pre_scale(const MxScheme& scheme, const float* row, int64_t n, FiniteCheck& check,
                       const MxRow& to) {
  float* const scaled = thread_buffer<float>(Slot::flat, 2 * n);
  float* const decoded = scaled + n;
  float best = 1.0f;
  double least = std::numeric_limits<double>::infinity();
  for (const float factor : kPreScales.value) {
    scale_row(row, n, factor, scaled);
    if (!encode_row(scheme, scaled, n, check, to)) return best;
    decode_row(scheme, to.codes, to.scales, n, factor, decoded);
    LaneSums lanes;
    row_kernels().add_errors(row, decoded, n, lanes);
    double error = 0;
    for (const float lane : lanes.error) error += static_cast<double>(lane);
    if (error < least) best = factor, least = error;
  }
  scale_row(row, n, best, scaled);
  encode_row(scheme, scaled, n, check, to);
  return best;
}

}  // namespace

const MxFactors& mx_factors() { return kPreScales; }

int mx_max_exponent(MxElement element) { return facts(element).max_exponent; }

int mx_element_bits(MxElement element) { return facts(element).bits; }

uint8_t mx_scale_of(MxElement element, float absmax) {
  return numerics::e8m0_of_absmax(absmax, facts(element).max_exponent);
}

void quantize_mx(ThreadPool& pool, const ConstMatrix& w, const MxScheme& scheme, uint8_t* packed,
                 uint8_t* scales, float* pre_scale, ErrorSums* sums) {
  check_weight(w);
  const int bits = mx_element_bits(scheme.element);
  const int64_t blocks = (w.cols + kMxBlock - 1) / kMxBlock;
  const int64_t row_bytes = packed_row_bytes(w.cols, bits);
  FiniteCheck check;
  PartSums parts(sums, w.rows);
  for_each_strip(pool, w, [&](const Strip& strip, int64_t first) {
    for (int64_t i = 0; i < strip.rows(); ++i) {
      const int64_t r = first + i;
      const float* const row = strip.row(i);
      const MxRow to{thread_buffer<uint8_t>(Slot::codes, w.cols + kCodeSlack), scales + r * blocks};
      float factor = 1.0f;
      if (scheme.pre_scale)
        pre_scale[r] = factor = search_pre_scale(scheme, row, w.cols, check, to);
      else if (!encode_row(scheme, row, w.cols, check, to))
        continue;
      std::memset(to.codes + w.cols, 0, kPackSlack);
      bit_kernels().pack[bits](to.codes, w.cols, packed + r * row_bytes);
      if (!parts.wanted()) continue;
      float* const decoded = thread_buffer<float>(Slot::decoded_row, w.cols);
      decode_row(scheme, to.codes, to.scales, w.cols, factor, decoded);
      LaneSums lanes;
      row_kernels().add_errors(row, decoded, w.cols, lanes);
      parts.put(r, lanes);
    }
  });
  check.finish(w);
  parts.finish();
}

void dequantize_mx(ThreadPool& pool, const MxScheme& scheme, const uint8_t* packed, const uint8_t* scales,
                   const float* pre_scale, int64_t out, int64_t in, DType dtype, std::byte* values) {
  const int bits = mx_element_bits(scheme.element);
  const int64_t blocks = (in + kMxBlock - 1) / kMxBlock;
  const int64_t row_bytes = packed_row_bytes(in, bits);
  for_each_row_task(pool, out, in, [&](int64_t r) {
    uint8_t* const codes = thread_buffer<uint8_t>(Slot::codes, in + kPackSlack);
    bit_kernels().unpack[bits](packed + r * row_bytes, in, codes);
    const RowWriter writer(dtype, in, values + r * in * size_of(dtype));
    decode_row(scheme, codes, scales + r * blocks, in, pre_scale == nullptr ? 1.0f : pre_scale[r],
               writer.values());
    writer.finish();
  });
}

}  // namespace quantaria::ops
