#pragma once

#include "numerics/e8m0.h"
#include "ops/dequant_matmul/coded_matrix.h"
#include "simt/simt.h"

/// One value of a quantized weight, of any scheme: what dequantization writes, and what products in float32
/// multiply.
namespace quantaria::ops {

/// The code that begins at that bit of a weight.
__device__ __forceinline__ uint32_t code_at(const CodedSource& source, int bits, int64_t bit) {
  const uint32_t* const word = source.words + bit / 32;
  const int shift = static_cast<int>(bit % 32);
  uint32_t code = simt::load(word) >> shift;
  if (shift + bits > 32) code |= simt::load(word + 1) << (32 - shift);
  return code & ((uint32_t{1} << bits) - 1);
}

/// The right factor of fma_product, or what is written out.
struct CodedRows {
  static constexpr bool kAlongSteps = true;
  struct Shared {
    CodeTable table;
  };
  using Source = CodedSource;

  CodedMatrix matrix;
  CodeTable table;

  __device__ const Source& source() const { return matrix; }

  /// Brings the table into shared memory, where every thread of a warp may look up another place at once.
  __device__ void prepare(Shared& shared) const {
    fetch_table(shared);
    __syncthreads();  // the table is there for all
  }
  /// Without the barrier, which has to follow.
  __device__ void fetch_table(Shared& shared) const {
    const int entries = matrix.bits <= 8 ? 1 << matrix.bits : 0;
    for (int i = static_cast<int>(threadIdx.x); i < entries; i += static_cast<int>(blockDim.x))
      shared.table.values[i] = table.values[i];
    if (matrix.form == ScaleForm::nested) prepare_nested(shared.table);
  }
  __device__ void prepare_nested(CodeTable& shared) const {
    for (int i = static_cast<int>(threadIdx.x); i < 256; i += static_cast<int>(blockDim.x))
      shared.nested[i] = table.nested[i];
  }

  __device__ float value(const Shared& shared, const Source& source, int64_t n, int64_t k) const {
    const CodedMatrix& m = matrix;
    const uint32_t code = code_at(source, m.bits, n * m.row_bits + k * m.bits);
    const int64_t constant = m.flat         ? (n * m.in + k) / m.group
                             : source.index ? n * m.row_step + simt::load(source.index + k)
                                            : n * m.row_step + k / m.group;
    float value =
        m.bits <= 8 ? shared.table.values[code] : static_cast<float>(static_cast<int>(code) + m.first);
    if (source.zeros) value -= static_cast<float>(simt::load(source.zeros + constant));
    value *= scale_at(shared.table, source, constant);
    if (source.row_divisors) value /= simt::load(source.row_divisors + n);
    return m.divisor == 1 ? value : value / m.divisor;
  }

  __device__ float value(const Shared& shared, int64_t n, int64_t k) const {
    return value(shared, source(), n, k);
  }

  /// The same as one factor of (table[code] - zero), for row n.
  __device__ float scale(const CodeTable& shared, const Source& source, int64_t n, int64_t constant) const {
    float scale = scale_at(shared, source, constant);
    if (source.row_divisors) scale /= simt::load(source.row_divisors + n);
    return matrix.divisor == 1 ? scale : scale / matrix.divisor;
  }

 private:
  __device__ float scale_at(const CodeTable& shared, const Source& source, int64_t constant) const {
    if (matrix.form == ScaleForm::plain) return simt::load(source.floats + constant);
    const uint8_t byte = simt::load(source.bytes + constant);
    if (matrix.form == ScaleForm::e8m0) return numerics::float_from_e8m0(byte);
    return shared.nested[byte] * simt::load(source.floats + constant / kNestedBlock) +
           simt::load(source.offset);
  }
};

}  // namespace quantaria::ops
