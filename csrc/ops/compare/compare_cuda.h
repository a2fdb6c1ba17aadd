#pragma once

#include "ops/compare/compare.h"

namespace quantaria::ops {

/// The sums of compare.h for values in device memory, which come to stand in `result`, one Difference of it,
/// once the stream has come past the call: in float64, in an order that depends on `count` alone. workspace:
/// compare_workspace() bytes of device memory. `stream` is a simt::Stream.
void compare_cuda(void* stream, const float* values, const float* reference, int64_t count,
                  std::byte* workspace, Difference* result);
int64_t compare_workspace();

struct CompareLaunchers {
  decltype(&compare_cuda) compare;
  decltype(&compare_workspace) workspace;
};
inline constexpr CompareLaunchers kCompareLaunchers{compare_cuda, compare_workspace};

}  // namespace quantaria::ops
