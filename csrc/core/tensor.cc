#include "core/tensor.h"

#include <utility>

#include "core/error.h"

namespace quantaria {

bool Tensor::contiguous() const {
  int64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    // The stride of a dimension with one element is never used.
    if (shape[i] != 1 && strides[i] != expected) return elements() == 0;
    expected *= shape[i];
  }
  return true;
}

namespace {
size_t checked_dim(const Tensor& tensor, int64_t dim) {
  const auto rank = static_cast<int64_t>(tensor.shape.size());
  if (dim < 0 || dim >= rank)
    fail(ErrorCode::shape, "dimension ", dim, " of a tensor of shape ", to_string(tensor.shape));
  return static_cast<size_t>(dim);
}
}  // namespace

Tensor slice(const Tensor& tensor, int64_t dim, int64_t start, int64_t end, int64_t step) {
  const size_t d = checked_dim(tensor, dim);
  if (start < 0 || end < start || end > tensor.shape[d] || step < 1)
    fail(ErrorCode::shape, "slice ", start, ":", end, ":", step, " of dimension ", dim, " of shape ",
         to_string(tensor.shape), ": 0 <= start <= end <= size and step >= 1 expected");
  Tensor view = tensor;
  view.offset += start * tensor.strides[d];
  view.shape[d] = end == start ? 0 : (end - start - 1) / step + 1;
  // The stride of a dimension of one element is never used, and a step beyond the end could overflow it.
  if (view.shape[d] > 1) view.strides[d] *= step;
  return view;
}

Tensor select(const Tensor& tensor, int64_t dim, int64_t index) {
  const size_t d = checked_dim(tensor, dim);
  if (index < 0 || index >= tensor.shape[d])
    fail(ErrorCode::shape, "index ", index, " in dimension ", dim, " of shape ", to_string(tensor.shape));
  Tensor view = tensor;
  view.offset += index * tensor.strides[d];
  view.shape.erase(view.shape.begin() + dim);
  view.strides.erase(view.strides.begin() + dim);
  return view;
}

Tensor transposed(const Tensor& tensor) {
  const size_t rank = tensor.shape.size();
  if (rank < 2)
    fail(ErrorCode::shape, "transpose of shape ", to_string(tensor.shape), ": two dimensions expected");
  Tensor view = tensor;
  std::swap(view.shape[rank - 2], view.shape[rank - 1]);
  std::swap(view.strides[rank - 2], view.strides[rank - 1]);
  return view;
}

Tensor reshaped(const Tensor& tensor, Shape shape) {
  if (element_count(shape) != tensor.elements())
    fail(ErrorCode::shape, "cannot view shape ", to_string(tensor.shape), " as ", to_string(shape));
  if (!tensor.contiguous())
    fail(ErrorCode::shape, "cannot reshape a view of shape ", to_string(tensor.shape),
         " that is not contiguous");
  Tensor view = tensor;
  view.strides = row_major(shape);
  view.shape = std::move(shape);
  return view;
}

Tensor bitcast(const Tensor& tensor, DType dtype, Shape shape) {
  const int64_t count = element_count(shape);
  if (!tensor.contiguous() || count * size_of(dtype) != tensor.bytes())
    fail(ErrorCode::shape, "cannot read ", name_of(tensor.dtype), " ", to_string(tensor.shape), " as ",
         name_of(dtype), " ", to_string(shape));
  const int64_t byte_offset = tensor.offset * size_of(tensor.dtype);
  if (byte_offset % size_of(dtype) != 0)
    fail(ErrorCode::shape, "cannot read a view at byte ", byte_offset, " as ", name_of(dtype));
  Tensor view = tensor;
  view.dtype = dtype;
  view.offset = byte_offset / size_of(dtype);
  view.strides = row_major(shape);
  view.shape = std::move(shape);
  return view;
}

Matrix as_matrix(const Tensor& tensor) {
  if (tensor.shape.size() == 1)
    return {tensor.data(), tensor.dtype, 1, tensor.shape[0], tensor.shape[0], tensor.strides[0]};
  if (tensor.shape.size() != 2)
    fail(ErrorCode::shape, "a matrix expected, got shape ", to_string(tensor.shape));
  return {tensor.data(),   tensor.dtype,      tensor.shape[0],
          tensor.shape[1], tensor.strides[0], tensor.strides[1]};
}

}  // namespace quantaria
