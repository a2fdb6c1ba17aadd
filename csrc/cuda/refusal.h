#pragma once

#include <optional>
#include <vector>

#include "core/matrix.h"
#include "cuda/device.h"

namespace quantaria::cuda {

/// What kernels have to say about their input (verdict.h): 8 bytes of device memory. For bodies of operations
/// on the device's queue, which wait for their kernels there, so that an error belongs to its operation.
inline constexpr int64_t kVerdictBytes = 8;

/// Nothing is refused yet.
void clear_verdict(Device& device, std::byte* verdict);

/// The first element that was refused; none while a graph is captured. Kernels stay inside of their tensors
/// whatever they refuse.
std::optional<int64_t> refused(Device& device, const std::byte* verdict);

/// Values in device memory, for the check that says what is wrong with them.
template <class T>
std::vector<T> values_of(Device& device, const T* from, int64_t count) {
  std::vector<T> values(static_cast<size_t>(count));
  device.copy_out(reinterpret_cast<const std::byte*>(from), reinterpret_cast<std::byte*>(values.data()),
                  count * static_cast<int64_t>(sizeof(T)));
  return values;
}

/// An element of a matrix in device memory, for an error's message: of a float32, float16 or bfloat16 one
/// exact, of integers below 2^53 too.
double element_at(Device& device, const ConstMatrix& m, int64_t row, int64_t col);

}  // namespace quantaria::cuda
