#pragma once

#include <cstdint>

#include "core/thread_pool.h"

namespace quantaria::ops {

/// How far `values` are from `reference`.
struct Difference {
  double error = 0;        // sum (values - reference)^2
  double reference = 0;    // sum reference^2
  int64_t non_finite = 0;  // of values
};

/// Both float32, `count` of them, contiguous; `reference` may be null, which stands for zeros. Summed in
/// double in a fixed structure, so the result does not depend on the thread count.
Difference compare(ThreadPool& pool, const float* values, const float* reference, int64_t count);

}  // namespace quantaria::ops
