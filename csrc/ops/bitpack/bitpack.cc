#include "ops/bitpack/bitpack.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <limits>
#include <vector>

#include "core/error.h"
#include "ops/bitpack/kernels.h"

namespace quantaria::ops {
namespace {

constexpr int64_t kElementsPerTask = int64_t{1} << 16;

int64_t rows_per_task(int64_t cols) {
  return std::max<int64_t>(1, kElementsPerTask / std::max<int64_t>(1, cols));
}

/// body(row) for all rows, in tasks of some thousand elements.
template <class Body>
void for_each_row(ThreadPool& pool, int64_t rows, int64_t cols, const Body& body) {
  const int64_t per_task = rows_per_task(cols);
  pool.parallel_for((rows + per_task - 1) / per_task, [&](int64_t task) {
    const int64_t end = std::min(rows, (task + 1) * per_task);
    for (int64_t r = task * per_task; r < end; ++r) body(r);
  });
}

/// Calls f with a null pointer to the element type.
template <class F>
void with_integer_type(DType dtype, const char* argument, F&& f) {
  switch (dtype) {
    case DType::int8:
      return f(static_cast<int8_t*>(nullptr));
    case DType::uint8:
      return f(static_cast<uint8_t*>(nullptr));
    case DType::int16:
      return f(static_cast<int16_t*>(nullptr));
    case DType::int32:
      return f(static_cast<int32_t*>(nullptr));
    case DType::int64:
      return f(static_cast<int64_t*>(nullptr));
    default:
      fail(ErrorCode::dtype, argument, ": ", name_of(dtype), " given, an integer type expected");
  }
}

template <class T>
T element(const ConstMatrix& m, int64_t r, int64_t c) {
  T value;
  std::memcpy(&value, m.data + (r * m.row_stride + c * m.col_stride) * static_cast<int64_t>(sizeof(T)),
              sizeof(T));
  return value;
}

template <class T>
void set_element(const Matrix& m, int64_t r, int64_t c, T value) {
  std::memcpy(m.data + (r * m.row_stride + c * m.col_stride) * static_cast<int64_t>(sizeof(T)), &value,
              sizeof(T));
}

void check_bits(int bits) {
  if ((bits < 2 || bits > 8) && bits != 16)
    fail(ErrorCode::argument, "bits: ", bits, " given, 2..8 or 16 expected");
}

void check_order(const std::optional<NibbleOrder>& order, int bits, int64_t cols) {
  if (!order) return;
  if (bits != 4) fail(ErrorCode::argument, "order: only for 4 bits, not for ", bits);
  if (cols % 8 != 0) fail(ErrorCode::shape, "order: ", cols, " columns given, a multiple of 8 expected");
  NibbleOrder sorted = *order;
  std::sort(sorted.begin(), sorted.end());
  for (int i = 0; i < 8; ++i)
    if (sorted[static_cast<size_t>(i)] != i) fail(ErrorCode::argument, "order: not a permutation of 0..7");
}

/// Columns 8c + order[j] of a row of codes, to 8c + j.
void permute_columns(uint8_t* codes, int64_t cols, const NibbleOrder& order, bool inverse) {
  for (int64_t c = 0; c < cols; c += 8) {
    uint8_t run[8];
    std::memcpy(run, codes + c, 8);
    for (size_t j = 0; j < 8; ++j) {
      const auto column = static_cast<size_t>(order[j]);
      if (inverse)
        codes[c + static_cast<int64_t>(column)] = run[j];
      else
        codes[c + static_cast<int64_t>(j)] = run[column];
    }
  }
}

template <class T, class Code>
void read_codes(const ConstMatrix& from, int64_t r, int bits, int32_t offset, Code* codes) {
  const int64_t limit = int64_t{1} << bits;
  for (int64_t c = 0; c < from.cols; ++c) {
    const int64_t code = int64_t{element<T>(from, r, c)} + offset;
    if (code < 0 || code >= limit) refuse_packed(code - offset, r, c, bits, offset);
    codes[c] = static_cast<Code>(code);
  }
}

}  // namespace

void check_packing(DType codes, int bits, const std::optional<NibbleOrder>& order, int64_t cols) {
  check_bits(bits);
  check_order(order, bits, cols);
  with_integer_type(codes, "codes", [](auto*) {});
}

void check_unpacking(DType codes, int bits, int32_t offset, const std::optional<NibbleOrder>& order,
                     int64_t cols) {
  check_bits(bits);
  check_order(order, bits, cols);
  with_integer_type(codes, "codes", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const int64_t low = -int64_t{offset};
    const int64_t high = (int64_t{1} << bits) - 1 - offset;
    if (low < int64_t{std::numeric_limits<T>::min()} || high > int64_t{std::numeric_limits<T>::max()})
      fail(ErrorCode::argument, "codes: ", name_of(codes), " cannot hold ", low, " .. ", high);
  });
}

void refuse_packed(int64_t code, int64_t row, int64_t col, int bits, int32_t offset) {
  fail(ErrorCode::argument, "codes: ", code, " at row ", row, ", column ", col, ", ", -int64_t{offset},
       " .. ", (int64_t{1} << bits) - 1 - offset, " expected for ", bits, " bits");
}

void refuse_planar(int64_t code, int64_t row, int64_t col, int bits) {
  fail(ErrorCode::argument, "codes: ", code, " at row ", row, ", column ", col, ", 0 .. ", (1 << bits) - 1,
       " expected for ", bits, " bits");
}

void refuse_offset(int64_t code, int64_t delta, int64_t row, int64_t col, DType dtype) {
  fail(ErrorCode::argument, "codes: ", code, " + ", delta, " at row ", row, ", column ", col,
       " does not fit ", name_of(dtype));
}

void pack_bits(ThreadPool& pool, const ConstMatrix& codes, int bits, int32_t offset, uint8_t* packed,
               const std::optional<NibbleOrder>& order) {
  check_packing(codes.dtype, bits, order, codes.cols);
  if (codes.cols == 0) return;
  const int64_t row_bytes = packed_row_bytes(codes.cols, bits);
  with_integer_type(codes.dtype, "codes", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_row(pool, codes.rows, codes.cols, [&](int64_t r) {
      uint8_t* const to = packed + r * row_bytes;
      if (bits == 16) {
        std::vector<uint16_t> row(static_cast<size_t>(row_bytes / 2));
        read_codes<T>(codes, r, bits, offset, row.data());
        std::memcpy(to, row.data(), static_cast<size_t>(row_bytes));
        return;
      }
      std::vector<uint8_t> row(static_cast<size_t>(codes.cols + kPackSlack));
      read_codes<T>(codes, r, bits, offset, row.data());
      if (order) permute_columns(row.data(), codes.cols, *order, false);
      bit_kernels().pack[bits](row.data(), codes.cols, to);
    });
  });
}

void unpack_bits(ThreadPool& pool, const uint8_t* packed, int64_t packed_stride, int bits, int32_t offset,
                 const Matrix& codes, const std::optional<NibbleOrder>& order) {
  check_unpacking(codes.dtype, bits, offset, order, codes.cols);
  with_integer_type(codes.dtype, "codes", [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    for_each_row(pool, codes.rows, codes.cols, [&](int64_t r) {
      const uint8_t* const from = packed + r * packed_stride;
      if (bits == 16) {
        for (int64_t c = 0; c < codes.cols; ++c) {
          uint16_t code;
          std::memcpy(&code, from + 2 * c, 2);
          set_element(codes, r, c, static_cast<T>(code - offset));
        }
        return;
      }
      std::vector<uint8_t> row(static_cast<size_t>(codes.cols + kPackSlack));
      bit_kernels().unpack[bits](from, codes.cols, row.data());
      if (order) permute_columns(row.data(), codes.cols, *order, true);
      for (int64_t c = 0; c < codes.cols; ++c)
        set_element(codes, r, c, static_cast<T>(row[static_cast<size_t>(c)] - offset));
    });
  });
}

void swap_nibbles(ThreadPool& pool, const uint8_t* in, int64_t bytes, uint8_t* out) {
  pool.parallel_for((bytes + kElementsPerTask - 1) / kElementsPerTask, [&](int64_t task) {
    const int64_t end = std::min(bytes, (task + 1) * kElementsPerTask);
    int64_t k = task * kElementsPerTask;
    for (; k + 8 <= end; k += 8) {  // eight bytes in one register
      constexpr uint64_t kLow = 0x0F0F0F0F0F0F0F0F;
      uint64_t word;
      std::memcpy(&word, in + k, 8);
      word = (word & kLow) << 4 | ((word >> 4) & kLow);
      std::memcpy(out + k, &word, 8);
    }
    for (; k < end; ++k) out[k] = static_cast<uint8_t>(in[k] << 4 | in[k] >> 4);
  });
}

namespace {

void check_planar_bits(int bits) {
  if (bits != 2 && bits != 4)
    fail(ErrorCode::argument, "bits: ", bits, " given, 2 or 4 expected for planar packing");
}

}  // namespace

void pack_planar(ThreadPool& pool, const uint8_t* codes, int64_t rows, int64_t cols, int bits,
                 uint8_t* packed) {
  check_planar_bits(bits);
  const int64_t planes = 8 / bits;
  const int64_t packed_rows = (rows + planes - 1) / planes;
  // Checked apart from packing: a packed row holds codes of far rows, and the first error is by row.
  for_each_row(pool, rows, cols, [&](int64_t r) {
    for (int64_t c = 0; c < cols; ++c)
      if (const int code = codes[r * cols + c]; code >> bits != 0) refuse_planar(code, r, c, bits);
  });
  for_each_row(pool, packed_rows, cols, [&](int64_t p) {
    uint8_t* const to = packed + p * cols;
    std::memset(to, 0, static_cast<size_t>(cols));
    for (int64_t j = 0; j < planes && p + j * packed_rows < rows; ++j) {
      const uint8_t* const from = codes + (p + j * packed_rows) * cols;
      for (int64_t c = 0; c < cols; ++c) to[c] = static_cast<uint8_t>(to[c] | from[c] << (bits * j));
    }
  });
}

void unpack_planar(ThreadPool& pool, const uint8_t* packed, int64_t rows, int64_t cols, int bits,
                   uint8_t* codes) {
  check_planar_bits(bits);
  const int64_t planes = 8 / bits;
  const int64_t packed_rows = (rows + planes - 1) / planes;
  for_each_row(pool, rows, cols, [&](int64_t r) {
    const uint8_t* const from = packed + r % packed_rows * cols;
    const int64_t shift = r / packed_rows * bits;
    for (int64_t c = 0; c < cols; ++c)
      codes[r * cols + c] = static_cast<uint8_t>(from[c] >> shift & ((1 << bits) - 1));
  });
}

void offset_codes(ThreadPool& pool, const ConstMatrix& in, int64_t delta,
                  const std::optional<CodeRange>& clamp, const Matrix& out) {
  if (in.rows != out.rows || in.cols != out.cols)
    fail(ErrorCode::shape, "out: [", out.rows, ", ", out.cols, "] given, [", in.rows, ", ", in.cols,
         "] expected");
  with_integer_type(in.dtype, "in", [&](auto* in_type) {
    using From = std::remove_pointer_t<decltype(in_type)>;
    with_integer_type(out.dtype, "out", [&](auto* out_type) {
      using To = std::remove_pointer_t<decltype(out_type)>;
      for_each_row(pool, in.rows, in.cols, [&](int64_t r) {
        for (int64_t c = 0; c < in.cols; ++c) {
          int64_t sum = 0;
          bool overflow = __builtin_add_overflow(int64_t{element<From>(in, r, c)}, delta, &sum);
          if (clamp) {
            sum =
                overflow ? (delta > 0 ? clamp->high : clamp->low) : std::clamp(sum, clamp->low, clamp->high);
            overflow = false;
          }
          if (overflow || sum < int64_t{std::numeric_limits<To>::min()} ||
              sum > int64_t{std::numeric_limits<To>::max()})
            refuse_offset(element<From>(in, r, c), delta, r, c, out.dtype);
          set_element(out, r, c, static_cast<To>(sum));
        }
      });
    });
  });
}

}  // namespace quantaria::ops
