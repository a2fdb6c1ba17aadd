#pragma once

#include <memory>

#include "core/dtype.h"
#include "core/matrix.h"
#include "core/shape.h"
#include "core/storage.h"

namespace quantaria {

class Device;

/// A view of a storage: shape, strides and offset are counted in elements of `dtype`. Copying a Tensor
/// shares the bytes.
struct Tensor {
  Device* device = nullptr;
  std::shared_ptr<Storage> storage;
  DType dtype = DType::float32;
  Shape shape;
  Strides strides;
  int64_t offset = 0;

  int64_t elements() const { return element_count(shape); }
  int64_t bytes() const { return elements() * size_of(dtype); }
  bool contiguous() const;
  std::byte* data() const { return storage->data() + offset * size_of(dtype); }

  /// data() as a pointer to T; the caller has checked the dtype.
  template <class T>
  T* data_as() const {
    return reinterpret_cast<T*>(data());
  }
};

/// Elements start, start + step, ... below end of one dimension. A view.
/// Throws ERR_SHAPE if the range does not lie in the dimension.
Tensor slice(const Tensor& tensor, int64_t dim, int64_t start, int64_t end, int64_t step = 1);

/// Dimension `dim` fixed at `index` and dropped. A view.
Tensor select(const Tensor& tensor, int64_t dim, int64_t index);

/// The last two dimensions exchanged. A view. Throws ERR_SHAPE under two dimensions.
Tensor transposed(const Tensor& tensor);

/// The same elements in another shape; a view, so the tensor must be contiguous (ERR_SHAPE).
Tensor reshaped(const Tensor& tensor, Shape shape);

/// The same bytes read as another dtype and shape; contiguous, same byte count (ERR_SHAPE).
Tensor bitcast(const Tensor& tensor, DType dtype, Shape shape);

/// Matrix view of a tensor with two dimensions, or with one, taken as a single row. ERR_SHAPE otherwise.
Matrix as_matrix(const Tensor& tensor);

}  // namespace quantaria
