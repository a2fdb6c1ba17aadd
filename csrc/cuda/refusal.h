#pragma once

#include <optional>

#include "core/matrix.h"
#include "cuda/device.h"

namespace quantaria::cuda {

/// What kernels have to say about their input (verdict.h): 8 bytes of device memory. For bodies of operations
/// on the device's queue, which wait for their kernels there, so that an error belongs to its operation.
inline constexpr int64_t kVerdictBytes = 8;

/// Nothing is refused yet.
void clear_verdict(Device& device, std::byte* verdict);

/// The first element that was refused.
std::optional<int64_t> refused(Device& device, const std::byte* verdict);

/// An element of a matrix in device memory, for an error's message: of a float32, float16 or bfloat16 one
/// exact, of integers below 2^53 too.
double element_at(Device& device, const ConstMatrix& m, int64_t row, int64_t col);

}  // namespace quantaria::cuda
