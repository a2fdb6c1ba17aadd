#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/device.h"

namespace quantaria::cuda {

/// Whether this build holds CUDA kernels, compiled for GPUs or emulated. Without them, nothing that calls one
/// is linked: `if constexpr (cuda::kKernels)`.
#if defined(QUANTARIA_WITH_CUDA) || defined(QUANTARIA_EMULATED)
inline constexpr bool kKernels = true;
#else
inline constexpr bool kKernels = false;
#endif

/// A device that CUDA kernels run on.
class Device : public quantaria::Device {
 public:
  /// "cuda" or "cuda-emulated"
  virtual const std::string& kind() const = 0;
  virtual const std::string& name() const = 0;
  virtual int64_t memory_bytes() const = 0;
  virtual const std::string& compute_capability() const = 0;

  /// Where the bodies of operations, on the device's queue thread, launch kernels: a simt::Stream.
  virtual void* stream() = 0;
};

/// Those of this machine and build. They are never destroyed: their threads may be at work while the process
/// ends.
const std::vector<Device*>& devices();

}  // namespace quantaria::cuda
