#pragma once

#include <cuda_runtime.h>

#include <cstddef>

#include "core/error.h"

/// From host code to kernels. The names are those of simt/host/launch.h.
namespace quantaria::simt {

using Stream = cudaStream_t;

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) fail(ErrorCode::cuda, what, ": ", cudaGetErrorString(error));
}

/// Queues kernel(arguments...) with `shared` bytes of shared memory a block. ERR_CUDA if the launch is
/// refused.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Stream stream,
            Arguments... arguments) {
  constexpr size_t kGrantedWithoutAsking = size_t{48} << 10;
  if (shared > kGrantedWithoutAsking)
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared)),
          "shared memory");
  kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), "kernel launch");
}

}  // namespace quantaria::simt
