#include <algorithm>
#include <atomic>
#include <cstring>

#include "core/error.h"
#include "ops/bitpack/bitpack.h"
#include "ops/bitpack/kernels.h"
#include "ops/quantize/int_grid.h"
#include "ops/quantize/weight.h"

namespace quantaria::ops {
namespace {

/// Constants of each column of a row, gathered from its groups.
class ColumnConstants {
 public:
  explicit ColumnConstants(int64_t in)
      : scales(thread_buffer<float>(Slot::flat, 2 * in)), zeros(scales + in), in_(in) {}

  template <class GroupOf>
  void gather(const float* group_scales, const int32_t* group_zeros, int32_t offset, GroupOf group_of) {
    for (int64_t c = 0; c < in_; ++c) {
      const int64_t g = group_of(c);
      scales[c] = group_scales[g];
      zeros[c] = static_cast<float>(offset + (group_zeros == nullptr ? 0 : group_zeros[g]));
    }
  }

  float* scales;
  float* zeros;

 private:
  int64_t in_;
};

/// Decodes one row, with one constant per group or one per column.
class RowDecoder {
 public:
  RowDecoder(int bits, int64_t in) : bits_(bits), in_(in) {}

  void load(const uint8_t* packed) {
    if (bits_ == 16) {
      wide_ = thread_buffer<uint16_t>(Slot::codes, in_ + 1);
      std::memcpy(wide_, packed, static_cast<size_t>(in_) * 2);
    } else {
      narrow_ = thread_buffer<uint8_t>(Slot::codes, in_ + kPackSlack);
      bit_kernels().unpack[bits_](packed, in_, narrow_);
    }
  }
  void by_group(int64_t group, const float* scales, const float* zeros, float* row) const {
    if (bits_ == 16)
      int_kernels().decode16(wide_, in_, group, scales, zeros, row);
    else
      int_kernels().decode8(narrow_, in_, group, scales, zeros, row);
  }
  void by_column(const ColumnConstants& constants, float* row) const {
    if (bits_ == 16)
      int_kernels().decode16_columns(wide_, in_, constants.scales, constants.zeros, row);
    else
      int_kernels().decode8_columns(narrow_, in_, constants.scales, constants.zeros, row);
  }

 private:
  int bits_;
  int64_t in_;
  uint8_t* narrow_ = nullptr;
  uint16_t* wide_ = nullptr;
};

}  // namespace

void check_group_index(const int32_t* index, int64_t in, int64_t groups) {
  for (int64_t c = 0; c < in; ++c)
    if (index[c] < 0 || index[c] >= groups)
      fail(ErrorCode::argument, "groupIndex: ", index[c], " at column ", c, ", 0 .. ", groups - 1,
           " expected");
}

void dequantize_int(ThreadPool& pool, const IntScheme& scheme, const ConstIntStored& from, int64_t out,
                    int64_t in, DType dtype, std::byte* values) {
  check_scheme(scheme);
  const ConstantsShape shape = constants_shape(scheme, out, in);
  if (from.group_index != nullptr) check_group_index(from.group_index, in, shape.cols);
  if (in == 0) return;
  const int64_t group = group_length(scheme, in);
  const int32_t offset = limits_of(scheme).offset;
  const int64_t row_bytes = packed_row_bytes(in, scheme.bits);
  const bool per_column = scheme.granularity == Granularity::column;

  for_each_row_task(pool, out, in, [&](int64_t r) {
    const int64_t constants_at = shape.rows == 1 ? 0 : r * shape.cols;
    const float* const scales = from.scales + constants_at;
    const int32_t* const zeros = from.zeros == nullptr ? nullptr : from.zeros + constants_at;
    const RowWriter writer(dtype, in, values + r * in * size_of(dtype));
    RowDecoder decoder(scheme.bits, in);
    decoder.load(from.packed + r * row_bytes);
    if (per_column || from.group_index != nullptr) {
      ColumnConstants constants(in);
      constants.gather(scales, zeros, offset,
                       [&](int64_t c) { return from.group_index == nullptr ? c : from.group_index[c]; });
      decoder.by_column(constants, writer.values());
    } else {
      float* const float_zeros = thread_buffer<float>(Slot::constants, shape.cols);
      for (int64_t g = 0; g < shape.cols; ++g)
        float_zeros[g] = static_cast<float>(offset + (zeros == nullptr ? 0 : zeros[g]));
      decoder.by_group(group, scales, float_zeros, writer.values());
    }
    writer.finish();
  });
}

}  // namespace quantaria::ops
