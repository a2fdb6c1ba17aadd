#pragma once

#include <cstddef>
#include <utility>

#include "simt/emulator/machine.h"
#include "simt/host/index.h"
#include "simt/runtime/stream.h"

// CUDA's words for where functions run. There is no __shared__: what would be a variable for each thread here
// must not compile (simt::shared).
#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

/// From host code to kernels. The names are those of simt/cuda/launch.h.
namespace quantaria::simt {

/// One of simt/runtime. Without one, launches run at once, on the thread that asks for them.
using Stream = void*;

/// Runs, or queues, kernel(arguments...) with `shared` bytes of shared memory a block. A Fault if the launch
/// is refused or the kernel does what a GPU forbids: thrown at once without a stream, else it breaks the
/// device.
template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared, Stream stream,
            Arguments... arguments) {
  auto run = [=] {
    emulator::run(grid, block, shared, [=] { kernel(static_cast<Parameters>(arguments)...); });
  };
  if (stream == nullptr) return run();
  const auto count = [](dim3 size) { return uint64_t{size.x} * size.y * size.z; };
  emulator::submit(stream, {count(grid), count(block), shared, reinterpret_cast<const void*>(kernel)},
                   std::move(run));
}

}  // namespace quantaria::simt
