#pragma once

#include <cstdint>

namespace quantaria::ops {

/// to[r * to_stride + c] = from[c * from_stride + r] for r < rows, c < cols; strides in elements.
/// Single-threaded; blocked for registers, cache lines and pages.
template <class T>
void transpose(const T* from, int64_t from_stride, int64_t rows, int64_t cols, T* to, int64_t to_stride);

extern template void transpose(const uint8_t*, int64_t, int64_t, int64_t, uint8_t*, int64_t);
extern template void transpose(const uint16_t*, int64_t, int64_t, int64_t, uint16_t*, int64_t);
extern template void transpose(const uint32_t*, int64_t, int64_t, int64_t, uint32_t*, int64_t);

}  // namespace quantaria::ops
