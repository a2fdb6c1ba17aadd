#pragma once

#include <cstdint>
#include <vector>

#include "core/matrix.h"
#include "ops/copy/convert.h"

namespace quantaria::ops {

inline const std::byte* row_of(const ConstMatrix& x, int64_t row) {
  return x.data + row * x.row_stride * size_of(x.dtype);
}

/// A row's values from `first` on as float32: where they lie if they are that, else in `room`.
inline const float* floats_of(const ConstMatrix& x, int64_t row, int64_t first, int64_t n, float* room) {
  const std::byte* from = row_of(x, row) + first * size_of(x.dtype);
  if (x.dtype == DType::float32) return reinterpret_cast<const float*>(from);
  convert_row(x.dtype, from, DType::float32, reinterpret_cast<std::byte*>(room), n);
  return room;
}

/// A row of y as float32: written where it lies, or in `room` and then rounded by `finish`.
class RowWriter {
 public:
  RowWriter(const Matrix& y, int64_t row, float* room)
      : y_(y), to_(y.data + row * y.row_stride * size_of(y.dtype)), room_(room) {}
  float* floats() const { return direct() ? reinterpret_cast<float*>(to_) : room_; }
  void finish() const {
    if (!direct())
      convert_row(DType::float32, reinterpret_cast<const std::byte*>(room_), y_.dtype, to_, y_.cols);
  }

 private:
  bool direct() const { return y_.dtype == DType::float32; }
  const Matrix& y_;
  std::byte* to_;
  float* room_;
};

/// Room for rows of float32, one for each task that runs at a time.
inline std::vector<float> room_for(int64_t n) { return std::vector<float>(static_cast<size_t>(n)); }

}  // namespace quantaria::ops
