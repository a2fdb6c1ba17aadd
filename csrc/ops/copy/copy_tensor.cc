#include "ops/copy/copy_tensor.h"

#include <utility>

#include "core/error.h"
#include "cpu/device.h"
#include "cuda/device.h"
#include "ops/copy/copy.h"

namespace quantaria {
namespace {

constexpr int64_t kFlatRow = 16384;  // elements: enough rows to share out, few enough to stay cheap

/// Both row-major without gaps: a matrix of long rows, and what is left over as one more.
void copy_flat(ThreadPool& pool, const Tensor& source, const Tensor& target, int64_t count) {
  const int64_t rows = count / kFlatRow;
  ops::copy_cast(pool, {source.data(), source.dtype, rows, kFlatRow, kFlatRow, 1},
                 {target.data(), target.dtype, rows, kFlatRow, kFlatRow, 1});
  const int64_t done = rows * kFlatRow;
  const int64_t rest = count - done;
  ops::copy_cast(pool, {source.data() + done * size_of(source.dtype), source.dtype, 1, rest, rest, 1},
                 {target.data() + done * size_of(target.dtype), target.dtype, 1, rest, rest, 1});
}

/// The same elements in fewer dimensions: those of length 1 left out, and neighbours made one where both
/// tensors lie evenly.
void collapse(Tensor& source, Tensor& target) {
  Shape shape;
  Strides from;
  Strides to;
  for (size_t i = 0; i < source.shape.size(); ++i) {
    const int64_t n = source.shape[i];
    if (n == 1) continue;
    const bool even =
        !shape.empty() && from.back() == n * source.strides[i] && to.back() == n * target.strides[i];
    if (!even) {
      shape.push_back(n);
      from.push_back(source.strides[i]);
      to.push_back(target.strides[i]);
      continue;
    }
    shape.back() *= n;
    from.back() = source.strides[i];
    to.back() = target.strides[i];
  }
  if (shape.empty()) {  // one element
    shape.push_back(1);
    from.push_back(1);
    to.push_back(1);
  }
  source.shape = target.shape = std::move(shape);
  source.strides = std::move(from);
  target.strides = std::move(to);
}

/// Kernels share the work out by themselves: one launch for what is flat, else one for each matrix.
void copy_by_cuda(cuda::Device& device, Tensor source, Tensor target) {
  collapse(source, target);
  const int64_t count = source.elements();
  const auto copy = device.kernels().copy;
  if (source.contiguous() && target.contiguous()) {
    copy(device.stream(), {source.data(), source.dtype, 1, count, count, 1},
         {target.data(), target.dtype, 1, count, count, 1});
  } else if (source.shape.size() <= 2) {
    copy(device.stream(), as_matrix(source), as_matrix(target));
  } else {
    for (int64_t i = 0; i < source.shape[0]; ++i)
      copy_by_cuda(device, select(source, 0, i), select(target, 0, i));
  }
}

}  // namespace

void copy_on_device(const Tensor& source, const Tensor& target) {
  if (target.device == &cpu::device()) return copy_tensor(cpu::device().pool(), source, target);
  if (source.elements() > 0) copy_by_cuda(cuda::of(target.device), source, target);
}

void copy_tensor(ThreadPool& pool, const Tensor& source, const Tensor& target) {
  if (source.shape != target.shape)
    fail(ErrorCode::shape, "cannot copy ", to_string(source.shape), " to ", to_string(target.shape));
  const int64_t count = source.elements();
  if (count == 0) return;
  if (source.contiguous() && target.contiguous()) {
    copy_flat(pool, source, target, count);
  } else if (source.shape.size() <= 2) {
    ops::copy_cast(pool, as_matrix(source), as_matrix(target));
  } else {
    for (int64_t i = 0; i < source.shape[0]; ++i)
      copy_tensor(pool, select(source, 0, i), select(target, 0, i));
  }
}

}  // namespace quantaria
