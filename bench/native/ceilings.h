#pragma once

#include <cstdint>

namespace quantaria::bench {

/// Loops that do one thing at the highest rate an instruction set has. Twelve independent accumulators hide
/// latencies; nothing but registers is touched. Each returns something that depends on all of its work.
struct CeilingKernels {
  /// Operations of one iteration of the loop below.
  double operations;
  float (*multiply_add)(int64_t iterations);
};

/// Reads `bytes` (a multiple of 1024) and adds them up.
using ReadKernel = int32_t (*)(const void* from, int64_t bytes);

}  // namespace quantaria::bench
