#pragma once

#include "cuda/verdict.h"
#include "ops/quantize/error_sums.cuh"
#include "ops/quantize/quantize_cuda.h"

namespace quantaria::ops {

/// How the workspace of a quantization is shared out: the verdict, the error sums, and what a scheme needs.
struct CallRoom {
  static constexpr int64_t kVerdictBytes = 16;

  cuda::Verdict* verdict;
  std::byte* errors;
  std::byte* rest;

  explicit CallRoom(std::byte* workspace)
      : verdict(reinterpret_cast<cuda::Verdict*>(workspace)),
        errors(workspace + kVerdictBytes),
        rest(errors + error_sums_workspace()) {}
  static int64_t bytes(int64_t rest) { return kVerdictBytes + error_sums_workspace() + rest; }

  float* floats() const { return reinterpret_cast<float*>(rest); }
};

}  // namespace quantaria::ops
