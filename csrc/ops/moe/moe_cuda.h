#pragma once

#include "ops/moe/experts_cuda.h"
#include "ops/moe/route_cuda.h"

namespace quantaria::ops {

/// The launchers of mixture-of-experts operations, each documented in its header.
struct MoeKernels {
  decltype(&route_cuda) route;
  decltype(&sort_slots_cuda) sort_slots;
  decltype(&slot_sort_workspace) sort_workspace;
  decltype(&experts_cuda) experts;
  decltype(&grouped_matmul_cuda) grouped_matmul;
};

}  // namespace quantaria::ops
