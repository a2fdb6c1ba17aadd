#pragma once

#include "simt/simt.h"

namespace quantaria::ops {

/// silu(gate) * up, by the formula of the CPU (ops/moe/swiglu.h): past the ends the quotient is the gate or
/// next to 0 anyway.
__device__ __forceinline__ float swiglu(float gate, float up) {
  return gate / (1.0f + expf(fmaxf(fminf(-gate, 88.0f), -87.0f))) * up;
}

}  // namespace quantaria::ops
