#pragma once

#include "ops/moe/experts_cuda.h"
#include "ops/moe/route_cuda.h"

namespace quantaria::ops {

/// The launchers of mixture-of-experts operations, as a device hands them out (cuda/kernels.h).
struct MoeLaunchers {
  decltype(&route_cuda) route;
  decltype(&sort_slots_cuda) sort_slots;
  decltype(&slot_sort_workspace) sort_workspace;
  decltype(&experts_cuda) experts;
  decltype(&grouped_matmul_cuda) grouped_matmul;
};
inline constexpr MoeLaunchers kMoeLaunchers{route_cuda, sort_slots_cuda, slot_sort_workspace, experts_cuda,
                                            grouped_matmul_cuda};

}  // namespace quantaria::ops
