#include "ops/dequant_matmul/kernels.h"

#include "cpu/isa.h"

namespace quantaria::ops {

namespace scalar {
extern const DequantKernels dequant_kernels;
extern const ByteKernels byte_kernels;
extern const ByteRows byte_rows;
}  // namespace scalar
namespace avx2 {
extern const DequantKernels dequant_kernels;
extern const ByteKernels byte_kernels;
extern const ByteRows byte_rows;
}  // namespace avx2
namespace avx512 {
extern const DequantKernels dequant_kernels;
extern const ByteKernels byte_kernels;
extern const ByteRows byte_rows;
}  // namespace avx512
namespace avx512vnni {
extern const ByteRows byte_rows;
extern const FewByteRows few_byte_rows;
}  // namespace avx512vnni
namespace avx512bf16 {
extern const PairKernels pair_kernels;
}

const DequantKernels& dequant_kernels() {
  static const DequantKernels* const by_isa[] = {&scalar::dequant_kernels, &avx2::dequant_kernels,
                                                 &avx512::dequant_kernels};
  return *of_selected_isa(by_isa);
}

const ByteKernels& byte_kernels() {
  static const ByteKernels* const by_isa[] = {&scalar::byte_kernels, &avx2::byte_kernels,
                                              &avx512::byte_kernels};
  return *of_selected_isa(by_isa);
}

const ByteRows& byte_rows() {
  static const ByteRows* const by_isa[] = {&scalar::byte_rows, &avx2::byte_rows, &avx512::byte_rows,
                                           &avx512vnni::byte_rows};
  return *of_selected_isa(by_isa);
}

const PairKernels* pair_kernels() {
  return selected_isa() >= Isa::avx512bf16 ? &avx512bf16::pair_kernels : nullptr;
}

const FewByteRows* few_byte_rows() {
  return selected_isa() >= Isa::avx512vnni ? &avx512vnni::few_byte_rows : nullptr;
}

int unit_words(int bits) { return bits / (bits & -bits); }
int unit_codes(int bits) { return unit_words(bits) * 32 / bits; }

ColumnOrder pair_order(Decoding decoding, int bits) {
  ColumnOrder order;
  if (decoding != Decoding::permutation || (bits != 2 && bits != 4)) return order;
  order.unit = unit_codes(bits);
  for (int i = 0; i < order.unit; ++i)
    order.at[static_cast<size_t>(i)] = static_cast<uint8_t>(i / 2 + (i % 2) * order.unit / 2);
  return order;
}

ColumnOrder byte_order(int bits) {
  ColumnOrder order;
  order.unit = unit_codes(bits);
  const int per_byte = 8 % bits == 0 ? 8 / bits : 1;
  for (int i = 0; i < order.unit; ++i)  // byte i % 4 of word i / 4
    order.at[static_cast<size_t>(i)] = static_cast<uint8_t>(per_byte == 1 ? i : i % 4 * per_byte + i / 4);
  return order;
}

}  // namespace quantaria::ops
