#include "core/shape.h"

#include "core/error.h"

namespace quantaria {

namespace {
constexpr int64_t kMaxElements = int64_t{1} << 53;
}

int64_t element_count(const Shape& shape) {
  int64_t count = 1;
  bool empty = false;
  for (const int64_t n : shape) {
    if (n < 0) fail(ErrorCode::shape, "shape ", to_string(shape), " has a negative dimension");
    if (n == 0) {
      empty = true;
    } else if (count > kMaxElements / n) {
      fail(ErrorCode::shape, "shape ", to_string(shape), " holds more than 2^53 elements");
    } else {
      count *= n;
    }
  }
  return empty ? 0 : count;
}

Strides row_major(const Shape& shape) {
  Strides strides(shape.size());
  int64_t stride = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    strides[i] = stride;
    stride *= shape[i] > 0 ? shape[i] : 1;
  }
  return strides;
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (size_t i = 0; i < shape.size(); ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace quantaria
