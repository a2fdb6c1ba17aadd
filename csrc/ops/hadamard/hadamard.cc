#include "ops/hadamard/hadamard.h"

#include <algorithm>
#include <limits>
#include <vector>

#include "core/error.h"
#include "ops/copy/convert.h"
#include "ops/hadamard/base_orders.h"
#include "ops/hadamard/kernels.h"

namespace quantaria::ops {
namespace {

constexpr int64_t kLanes = 16;

int64_t round_up(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

/// The base matrix in the order that its kernel reads, shared by all rows.
std::vector<float> signs_for(int64_t m, int64_t size) {
  const std::vector<int8_t> matrix = base_matrix(m);
  if (size >= kLanes) return {matrix.begin(), matrix.end()};
  const int64_t count = round_up(m * size);
  std::vector<float> signs(static_cast<size_t>(m * count));
  for (int64_t j = 0; j < m; ++j)
    for (int64_t e = 0; e < m * size; ++e)
      signs[static_cast<size_t>(j * count + e)] = matrix[static_cast<size_t>(e / size * m + j)];
  return signs;
}

/// What is needed for one row of n = m * size elements, size a power of two.
class RowTransform {
 public:
  RowTransform(int64_t n, float scale)
      : m_(base_order(n)),
        size_(n / m_),
        scale_(scale),
        signs_(m_ == 1 ? std::vector<float>{} : signs_for(m_, size_)) {}

  bool in_place() const { return m_ == 1 && size_ >= kLanes; }
  /// Whether rows need no room behind their end.
  bool whole_vectors() const { return size_ >= kLanes; }

  /// `from` and `to` are not the same unless in_place(); both have room up to a multiple of 16.
  void run(const float* from, float* to, const Ahead& ahead) const {
    const HadamardKernels& kernels = hadamard_kernels();
    const int64_t n = m_ * size_;
    if (in_place()) return kernels.sylvester(from, n, scale_, to, ahead);
    const int64_t count = round_up(n);
    if (m_ == 1)
      std::copy_n(from, count, to);
    else if (size_ >= kLanes)
      kernels.base_of_blocks(from, signs_.data(), m_, size_, to);
    else
      kernels.base_of_elements(from, signs_.data(), m_, size_, count, to);
    if (size_ < kLanes) return kernels.sylvester_of_runs(to, count, size_, scale_);
    for (int64_t block = 0; block < n; block += size_)
      kernels.sylvester(to + block, size_, scale_, to + block, {ahead.from + block, ahead.to + block});
  }

 private:
  int64_t m_;
  int64_t size_;
  float scale_;
  std::vector<float> signs_;
};

}  // namespace

void check_hadamard_size(int64_t n) {
  if (n == 0 || base_order(n) != 0) return;
  int64_t below = 1;
  int64_t above = std::numeric_limits<int64_t>::max();
  for (int64_t m = 1; m <= kLargestBaseOrder; ++m) {
    if (base_order(m) == 0) continue;
    int64_t size = m;
    while (size < n) below = std::max(below, size), size *= 2;
    above = std::min(above, size);
  }
  fail(ErrorCode::shape, "x: the last dimension is ", n,
       ", for which no Hadamard matrix is known here; the nearest sizes that have one are ", below, " and ",
       above);
}

void hadamard(ThreadPool& pool, DType dtype, int64_t rows, int64_t n, float scale, const std::byte* x,
              std::byte* y) {
  check_hadamard_size(n);
  if (dtype != DType::float32 && dtype != DType::float16 && dtype != DType::bfloat16)
    fail(ErrorCode::dtype, "x: ", name_of(dtype), " given, float32, float16 or bfloat16 expected");
  if (rows == 0 || n == 0) return;
  const RowTransform transform(n, scale);
  const int64_t row_bytes = n * size_of(dtype);
  const bool direct =
      dtype == DType::float32 && (transform.in_place() || (transform.whole_vectors() && x != y));
  constexpr int64_t kElementsPerTask = int64_t{1} << 16;
  const int64_t per_task = std::max<int64_t>(1, kElementsPerTask / n);
  pool.parallel_for((rows + per_task - 1) / per_task, [&](int64_t task) {
    const int64_t last = std::min(rows, (task + 1) * per_task);
    if (direct) {
      for (int64_t r = task * per_task; r < last; ++r) {
        const auto* const from = reinterpret_cast<const float*>(x + r * row_bytes);
        auto* const to = reinterpret_cast<float*>(y + r * row_bytes);
        const int64_t next = r + 1 < last ? n : 0;
        transform.run(from, to, {from + next, to + next});
      }
      return;
    }
    std::vector<float> from(static_cast<size_t>(round_up(n)));
    std::vector<float> separate(transform.in_place() ? 0 : from.size());
    float* const to = transform.in_place() ? from.data() : separate.data();
    for (int64_t r = task * per_task; r < last; ++r) {
      convert_row(dtype, x + r * row_bytes, DType::float32, reinterpret_cast<std::byte*>(from.data()), n);
      transform.run(from.data(), to, {from.data(), to});
      convert_row(DType::float32, reinterpret_cast<const std::byte*>(to), dtype, y + r * row_bytes, n);
    }
  });
}

}  // namespace quantaria::ops
