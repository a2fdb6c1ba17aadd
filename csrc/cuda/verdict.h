#pragma once

#include <cstdint>

#include "simt/simt.h"

/// What kernels have to say about their input: 0, which it starts with, or which element is the first that
/// they refuse. One number in device memory, whose value does not depend on the order of threads.
namespace quantaria::cuda {

using Verdict = unsigned long long;

__device__ inline void refuse(Verdict* verdict, int64_t element) {
  atomicMax(verdict, ~static_cast<Verdict>(element));
}

}  // namespace quantaria::cuda
