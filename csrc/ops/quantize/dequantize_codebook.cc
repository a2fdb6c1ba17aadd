#include <algorithm>

#include "ops/bitpack/kernels.h"
#include "ops/quantize/code_book_of.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {

void decode_nested_absmax(const uint8_t* codes, const float* scales, float offset, int64_t blocks,
                          float* absmax) {
  for (int64_t b = 0; b < blocks; ++b)
    absmax[b] = numerics::kDynamic8.values[codes[b]] * scales[b / kNestedBlock] + offset;
}

void dequantize_codebook(ThreadPool& pool, const CodebookScheme& given, const ConstCodebookStored& from,
                         int64_t out, int64_t in, DType dtype, std::byte* values) {
  const int64_t size = out * in;
  const CodebookScheme scheme = checked(given, size);
  std::vector<float> nested;
  const float* absmax = from.absmax;
  if (scheme.double_quant) {
    nested.resize(static_cast<size_t>(block_count(scheme, out, in)));
    decode_nested_absmax(from.absmax_codes, from.absmax_scales, *from.absmax_offset,
                         static_cast<int64_t>(nested.size()), nested.data());
    absmax = nested.data();
  }
  const int bits = bits_of(scheme.book);
  const int64_t length = piece_length(scheme);
  for_each_row_task(pool, (size + length - 1) / length, length, [&](int64_t piece) {
    const int64_t first = piece * length;
    const int64_t count = std::min(length, size - first);
    const float* const scales = absmax + first / scheme.block_size;
    uint8_t* const codes = thread_buffer<uint8_t>(Slot::codes, count + kCodeSlack);
    bit_kernels().unpack[bits](from.packed + first * bits / 8, count, codes);
    const RowWriter writer(dtype, count, values + first * size_of(dtype));
    if (bits == 8)
      codebook_kernels().decode8(codes, count, scheme.block_size, scales, writer.values());
    else
      codebook_kernels().decode4(codes, count, scheme.block_size, scales, table_of(scheme.book),
                                 writer.values());
    writer.finish();
  });
}

}  // namespace quantaria::ops
