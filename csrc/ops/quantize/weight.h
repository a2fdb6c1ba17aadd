#pragma once

#include <atomic>
#include <functional>
#include <vector>

#include "core/matrix.h"
#include "core/thread_pool.h"
#include "numerics/bits.h"
#include "ops/quantize/kernels.h"
#include "ops/quantize/quantize.h"

/// How every scheme reads a weight and counts what it lost.
namespace quantaria::ops {

/// The part of m at rows [row, row + rows) and columns [col, col + cols).
ConstMatrix part_of(const ConstMatrix& m, int64_t row, int64_t rows, int64_t col, int64_t cols);
ConstMatrix transposed_view(const ConstMatrix& m);

/// Throws ERR_DTYPE unless the weight is float32, float16 or bfloat16.
void check_weight(const ConstMatrix& w, const char* name = "w");

/// Throws ERR_ARGUMENT for an element of a weight that cannot be quantized.
[[noreturn]] void refuse_weight(float value, int64_t row, int64_t col, float bound);

/// Magnitudes from here on round beyond float16, which LLM.int8 casts weights to.
inline constexpr float kLlmInt8Bound = 65520.0f;

/// The rows of a few rows of a weight, contiguous and widened to float32 whatever their stride. A strip
/// whose columns are contiguous is transposed as a whole when it is made, into memory of this thread that
/// stays in the second-level cache. One strip a thread at a time.
class Strip {
 public:
  explicit Strip(const ConstMatrix& part);
  int64_t rows() const { return part_.rows; }
  /// Valid until the next call.
  const float* row(int64_t r) const;

 private:
  ConstMatrix part_;  // with contiguous rows, after the transposition
};

/// Strips of all rows of w in parallel, body(strip, first row). Their borders depend on w's shape alone.
void for_each_strip(ThreadPool& pool, const ConstMatrix& w,
                    const std::function<void(const Strip&, int64_t)>& body);

/// body(row) for all rows of an [out, in] result, in parallel tasks of some thousand elements.
void for_each_row_task(ThreadPool& pool, int64_t out, int64_t in, const std::function<void(int64_t)>& body);

/// count elements of the row-major weight from the flat index `first`.
void read_flat(const ConstMatrix& w, int64_t first, int64_t count, float* to);

/// Collects from all threads whether a row held a NaN or infinity; the position is looked up at the end.
class FiniteCheck {
 public:
  /// magnitude_bits: as the range kernels return it.
  bool ok(uint32_t magnitude_bits) {
    const bool finite = magnitude_bits < numerics::kInfinityBits;
    if (!finite) failed_.store(true, std::memory_order_relaxed);
    return finite;
  }
  /// Throws ERR_ARGUMENT naming the first element of w, in row-major order, that is NaN, infinite or of a
  /// magnitude >= bound.
  void finish(const ConstMatrix& w, float bound = __builtin_inff()) const;

 private:
  std::atomic<bool> failed_{false};
};

/// Error sums of parts (rows, or runs of blocks) taken in any order by any thread, added up in order.
class PartSums {
 public:
  PartSums(ErrorSums* to, int64_t parts) : to_(to), parts_(to == nullptr ? 0 : static_cast<size_t>(parts)) {}
  bool wanted() const { return to_ != nullptr; }
  void put(int64_t part, const LaneSums& lanes);
  void finish();

 private:
  ErrorSums* to_;
  std::vector<ErrorSums> parts_;
};

/// A buffer of this thread that only grows, so that a job pays its page faults once. Buffers of different
/// `Slot`s live side by side.
enum class Slot {
  strip,
  strided_row,
  wide_row,
  decoded_row,
  codes,
  constants,
  flat,
  row_panel,
  right_panel,
  dequantized,
  sums,
  last = sums
};
std::byte* thread_bytes(Slot slot, size_t bytes);
template <class T>
T* thread_buffer(Slot slot, int64_t count) {
  return reinterpret_cast<T*>(thread_bytes(slot, static_cast<size_t>(count) * sizeof(T)));
}

/// A row of dequantized values on its way to a row of any float dtype at `to`.
class RowWriter {
 public:
  RowWriter(DType dtype, int64_t n, std::byte* to);  // ERR_DTYPE unless float
  /// Where to put the float32 values: the destination itself if it is float32.
  float* values() const { return values_; }
  /// Casts them.
  void finish() const;

 private:
  DType dtype_;
  int64_t n_;
  std::byte* to_;
  float* values_;
};

}  // namespace quantaria::ops
