#include "ops/quantize/weight.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>

#include "core/error.h"
#include "ops/copy/transpose.h"

namespace quantaria::ops {
namespace {

/// Of a strip: enough to be worth a task, little enough for the second-level cache. A transposed strip
/// should be high, too, because each of its columns lies on pages of its own.
constexpr int64_t kStripBytes = int64_t{1} << 18;
constexpr int64_t kTaskElements = int64_t{3} << 16;
/// Rows of a transposed strip come in whole cache lines of 16-bit elements.
constexpr int64_t kRowsPerLine = 32;

const std::byte* element_at(const ConstMatrix& m, int64_t r, int64_t c) {
  return m.data + (r * m.row_stride + c * m.col_stride) * size_of(m.dtype);
}

bool has_contiguous_rows(const ConstMatrix& m) { return m.col_stride == 1 || m.cols <= 1; }
bool has_contiguous_columns(const ConstMatrix& m) { return m.row_stride == 1 && m.rows > 1; }

int64_t rows_per_strip(const ConstMatrix& w) {
  const int64_t cols = std::max<int64_t>(1, w.cols);
  if (has_contiguous_rows(w)) return std::clamp<int64_t>(kTaskElements / cols, 1, 64);
  const int64_t rows = kStripBytes / (cols * size_of(w.dtype)) / kRowsPerLine * kRowsPerLine;
  return std::clamp<int64_t>(rows, kRowsPerLine, 8 * kRowsPerLine);
}

template <class T>
ConstMatrix transposed_copy(const ConstMatrix& m) {
  // An odd number of lines from row to row spreads the rows over the cache's sets.
  constexpr int64_t line = 64 / sizeof(T);
  const int64_t stride = ((m.cols + line - 1) / line | 1) * line;
  T* const copy = thread_buffer<T>(Slot::strip, m.rows * stride);
  transpose(reinterpret_cast<const T*>(m.data), m.col_stride, m.rows, m.cols, copy, stride);
  return {reinterpret_cast<const std::byte*>(copy), m.dtype, m.rows, m.cols, stride, 1};
}

template <class T>
const std::byte* gathered_row(const ConstMatrix& m, int64_t r) {
  T* const row = thread_buffer<T>(Slot::strided_row, m.cols);
  for (int64_t c = 0; c < m.cols; ++c) std::memcpy(row + c, element_at(m, r, c), sizeof(T));
  return reinterpret_cast<const std::byte*>(row);
}

}  // namespace

ConstMatrix part_of(const ConstMatrix& m, int64_t row, int64_t rows, int64_t col, int64_t cols) {
  return {element_at(m, row, col), m.dtype, rows, cols, m.row_stride, m.col_stride};
}

ConstMatrix transposed_view(const ConstMatrix& m) {
  return {m.data, m.dtype, m.cols, m.rows, m.col_stride, m.row_stride};
}

void check_weight(const ConstMatrix& w, const char* name) {
  if (w.dtype != DType::float32 && w.dtype != DType::float16 && w.dtype != DType::bfloat16)
    fail(ErrorCode::dtype, name, ": ", name_of(w.dtype), " given, float32, float16 or bfloat16 expected");
}

void refuse_weight(float value, int64_t row, int64_t col, float bound) {
  fail(ErrorCode::argument, "w: ", value, " at row ", row, ", column ", col, ", magnitudes under ", bound,
       " expected");
}

Strip::Strip(const ConstMatrix& part) : part_(part) {
  if (has_contiguous_rows(part) || !has_contiguous_columns(part)) return;
  part_ = part.dtype == DType::float32 ? transposed_copy<uint32_t>(part) : transposed_copy<uint16_t>(part);
}

const float* Strip::row(int64_t r) const {
  const std::byte* from = element_at(part_, r, 0);
  const bool wide = part_.dtype == DType::float32;
  if (!has_contiguous_rows(part_))
    from = wide ? gathered_row<uint32_t>(part_, r) : gathered_row<uint16_t>(part_, r);
  // Mapped files align tensors to 8 bytes, but nothing obliges their writers to.
  const bool aligned = reinterpret_cast<uintptr_t>(from) % static_cast<uintptr_t>(size_of(part_.dtype)) == 0;
  if (!aligned) {
    std::byte* const row =
        thread_bytes(Slot::strided_row, static_cast<size_t>(part_.cols * size_of(part_.dtype)));
    std::memcpy(row, from, static_cast<size_t>(part_.cols * size_of(part_.dtype)));
    from = row;
  }
  if (wide) return reinterpret_cast<const float*>(from);
  float* const row = thread_buffer<float>(Slot::wide_row, part_.cols);
  const RowKernels& kernels = row_kernels();
  const auto widen = part_.dtype == DType::float16 ? kernels.from_half : kernels.from_bfloat16;
  widen(reinterpret_cast<const uint16_t*>(from), part_.cols, row);
  return row;
}

void for_each_strip(ThreadPool& pool, const ConstMatrix& w,
                    const std::function<void(const Strip&, int64_t)>& body) {
  const int64_t height = rows_per_strip(w);
  pool.parallel_for((w.rows + height - 1) / height, [&](int64_t task) {
    const int64_t first = task * height;
    body(Strip(part_of(w, first, std::min(height, w.rows - first), 0, w.cols)), first);
  });
}

void for_each_row_task(ThreadPool& pool, int64_t out, int64_t in, const std::function<void(int64_t)>& body) {
  const int64_t height = std::clamp<int64_t>(kTaskElements / std::max<int64_t>(1, in), 1, 64);
  pool.parallel_for((out + height - 1) / height, [&](int64_t task) {
    const int64_t end = std::min(out, (task + 1) * height);
    for (int64_t r = task * height; r < end; ++r) body(r);
  });
}

void read_flat(const ConstMatrix& w, int64_t first, int64_t count, float* to) {
  while (count > 0) {
    const int64_t row = first / w.cols;
    const int64_t col = first % w.cols;
    // Whole rows at once where possible, else the rest of one row.
    const int64_t rows = col == 0 ? std::max<int64_t>(1, count / w.cols) : 1;
    const int64_t cols = rows > 1 ? w.cols : std::min(count, w.cols - col);
    const Strip strip(part_of(w, row, rows, col, cols));
    for (int64_t r = 0; r < rows; ++r, to += cols)
      std::memcpy(to, strip.row(r), static_cast<size_t>(cols) * sizeof(float));
    first += rows * cols;
    count -= rows * cols;
  }
}

void FiniteCheck::finish(const ConstMatrix& w, float bound) const {
  if (!failed_.load()) return;
  for (int64_t r = 0; r < w.rows; ++r) {
    const Strip strip(part_of(w, r, 1, 0, w.cols));
    const float* const row = strip.row(0);
    for (int64_t c = 0; c < w.cols; ++c)
      if (!(std::abs(row[c]) < bound)) refuse_weight(row[c], r, c, bound);
  }
}

void PartSums::put(int64_t part, const LaneSums& lanes) {
  ErrorSums& sums = parts_[static_cast<size_t>(part)];
  for (int i = 0; i < 16; ++i) {
    sums.error += static_cast<double>(lanes.error[i]);
    sums.weight += static_cast<double>(lanes.weight[i]);
  }
}

void PartSums::finish() {
  if (to_ == nullptr) return;
  *to_ = {};
  for (const ErrorSums& part : parts_) {
    to_->error += part.error;
    to_->weight += part.weight;
  }
}

std::byte* thread_bytes(Slot slot, size_t bytes) {
  constexpr size_t kAlignment = 64;
  struct Buffer {
    std::unique_ptr<std::byte[]> memory;
    size_t bytes = 0;
  };
  thread_local Buffer buffers[static_cast<size_t>(Slot::last) + 1];
  Buffer& buffer = buffers[static_cast<size_t>(slot)];
  if (buffer.bytes < bytes) {
    buffer.memory = std::make_unique_for_overwrite<std::byte[]>(bytes + kAlignment);
    buffer.bytes = bytes;
  }
  const auto address = reinterpret_cast<uintptr_t>(buffer.memory.get());
  return reinterpret_cast<std::byte*>((address + kAlignment - 1) / kAlignment * kAlignment);
}

RowWriter::RowWriter(DType dtype, int64_t n, std::byte* to) : dtype_(dtype), n_(n), to_(to) {
  values_ = dtype == DType::float32 ? reinterpret_cast<float*>(to) : thread_buffer<float>(Slot::wide_row, n);
}

void RowWriter::finish() const {
  const RowKernels& kernels = row_kernels();
  switch (dtype_) {
    case DType::float32:
      return;
    case DType::float16:
      return kernels.to_half(values_, n_, reinterpret_cast<uint16_t*>(to_));
    case DType::bfloat16:
      return kernels.to_bfloat16(values_, n_, reinterpret_cast<uint16_t*>(to_));
    case DType::float8_e4m3:
      return kernels.to_e4m3(values_, n_, reinterpret_cast<uint8_t*>(to_));
    case DType::float8_e5m2:
      return kernels.to_e5m2(values_, n_, reinterpret_cast<uint8_t*>(to_));
    default:
      fail(ErrorCode::dtype, "dtype: ", name_of(dtype_), " given, a float type expected");
  }
}

}  // namespace quantaria::ops
