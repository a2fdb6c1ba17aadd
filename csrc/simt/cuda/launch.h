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

/// Asks for shared memory that is not granted without: 163 KB a block at most on an A100, 227 on an H100, and
/// only 99 on GPUs of compute capability 8.6, 8.9 and 12.0.
inline void ask_for_shared(const void* kernel, size_t bytes) {
  constexpr size_t kGrantedWithoutAsking = size_t{48} << 10;
  if (bytes <= kGrantedWithoutAsking) return;
  const cudaError_t answer =
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(bytes));
  if (answer == cudaErrorInvalidValue) {
    (void)cudaGetLastError();
    fail(ErrorCode::unsupported, "a kernel with ", bytes,
         " bytes of shared memory a block, which is more than this GPU has");
  }
  check(answer, "shared memory");
}

/// Queues kernel(arguments...) with `shared` bytes of shared memory a block. ERR_CUDA if the launch is
/// refused, ERR_UNSUPPORTED if the GPU has not that much memory.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Stream stream,
            Arguments... arguments) {
  ask_for_shared(reinterpret_cast<const void*>(kernel), shared);
  kernel<<<grid, block, shared, stream>>>(static_cast<Parameters>(arguments)...);
  check(cudaGetLastError(), "kernel launch");
}

}  // namespace quantaria::simt
