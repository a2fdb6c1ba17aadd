#include "ops/copy/copy.h"

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "core/error.h"
#include "ops/copy/convert.h"
#include "ops/copy/transpose.h"

namespace quantaria::ops {
namespace {

constexpr int64_t kTaskElements = int64_t{1} << 18;
/// Rows of a task come in whole cache lines of the narrowest elements, which transposition wants.
constexpr int64_t kRowStep = 64;

template <class M>
M rows_of(const M& m, int64_t row, int64_t rows) {
  return {m.data + row * m.row_stride * size_of(m.dtype), m.dtype, rows, m.cols, m.row_stride, m.col_stride};
}

template <class M>
M swapped(const M& m) {
  return {m.data, m.dtype, m.cols, m.rows, m.col_stride, m.row_stride};
}

template <class M>
auto* at(const M& m, int64_t r, int64_t c) {
  return m.data + (r * m.row_stride + c * m.col_stride) * size_of(m.dtype);
}

bool contiguous_rows(const ConstMatrix& m) { return m.col_stride == 1 || m.cols <= 1; }
bool contiguous_columns(const ConstMatrix& m) { return m.row_stride == 1 || m.rows <= 1; }

template <class T>
void copy_elements(const ConstMatrix& src, const Matrix& dst) {
  for (int64_t r = 0; r < src.rows; ++r)
    for (int64_t c = 0; c < src.cols; ++c) std::memcpy(at(dst, r, c), at(src, r, c), sizeof(T));
}

template <class T>
void transpose_elements(const ConstMatrix& src, const Matrix& dst) {
  transpose(reinterpret_cast<const T*>(src.data), src.col_stride, src.rows, src.cols,
            reinterpret_cast<T*>(dst.data), dst.row_stride);
}

void copy_same(const ConstMatrix& src, const Matrix& dst) {
  const int64_t bytes = size_of(src.dtype);
  if (contiguous_rows(src) && contiguous_rows(dst)) {
    for (int64_t r = 0; r < src.rows; ++r)
      std::memcpy(at(dst, r, 0), at(src, r, 0), static_cast<size_t>(src.cols * bytes));
    return;
  }
  const bool transposing = contiguous_columns(src) && contiguous_rows(dst);
  if (bytes == 1)
    return transposing ? transpose_elements<uint8_t>(src, dst) : copy_elements<uint8_t>(src, dst);
  if (bytes == 2)
    return transposing ? transpose_elements<uint16_t>(src, dst) : copy_elements<uint16_t>(src, dst);
  if (bytes == 4)
    return transposing ? transpose_elements<uint32_t>(src, dst) : copy_elements<uint32_t>(src, dst);
  return copy_elements<uint64_t>(src, dst);
}

/// A few rows: brought together, cast row by row, and spread if the destination is not contiguous.
void cast_rows(const ConstMatrix& src, const Matrix& dst) {
  std::vector<std::byte> gathered;
  ConstMatrix from = src;
  if (!contiguous_rows(src)) {
    gathered.resize(static_cast<size_t>(src.rows * src.cols * size_of(src.dtype)));
    const Matrix copy{gathered.data(), src.dtype, src.rows, src.cols, src.cols, 1};
    copy_same(src, copy);
    from = copy;
  }
  if (contiguous_rows(dst)) {
    for (int64_t r = 0; r < src.rows; ++r)
      convert_row(from.dtype, at(from, r, 0), dst.dtype, at(dst, r, 0), src.cols);
    return;
  }
  std::vector<std::byte> row(static_cast<size_t>(dst.cols * size_of(dst.dtype)));
  for (int64_t r = 0; r < src.rows; ++r) {
    convert_row(from.dtype, at(from, r, 0), dst.dtype, row.data(), src.cols);
    copy_same({row.data(), dst.dtype, 1, dst.cols, dst.cols, 1}, rows_of(dst, r, 1));
  }
}

}  // namespace

void copy_cast(ThreadPool& pool, const ConstMatrix& src, const Matrix& dst) {
  if (src.rows != dst.rows || src.cols != dst.cols)
    fail(ErrorCode::shape, "dst: [", dst.rows, ", ", dst.cols, "] given, [", src.rows, ", ", src.cols,
         "] expected");
  if (src.rows == 0 || src.cols == 0) return;
  // Whole rows are written one after the other wherever the destination has contiguous ones in either sense.
  const bool swap = !contiguous_rows(dst) && contiguous_columns(dst);
  const ConstMatrix from = swap ? swapped(src) : src;
  const Matrix to = swap ? swapped(dst) : dst;

  const bool both_contiguous = contiguous_rows(from) && contiguous_rows(to);
  const int64_t step = both_contiguous ? 1 : kRowStep;
  const int64_t height = std::max(step, kTaskElements / from.cols / step * step);
  pool.parallel_for((from.rows + height - 1) / height, [&](int64_t task) {
    const int64_t first = task * height;
    const int64_t rows = std::min(height, from.rows - first);
    if (from.dtype == to.dtype)
      copy_same(rows_of(from, first, rows), rows_of(to, first, rows));
    else
      cast_rows(rows_of(from, first, rows), rows_of(to, first, rows));
  });
}

}  // namespace quantaria::ops
