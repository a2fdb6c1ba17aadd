#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/device.h"
#include "cuda/kernels.h"

namespace quantaria::cuda {

/// A device that CUDA kernels run on.
class Device : public quantaria::Device {
 public:
  /// "cuda" or "cuda-emulated"
  virtual const std::string& kind() const = 0;
  virtual const std::string& name() const = 0;
  virtual int64_t memory_bytes() const = 0;
  virtual const std::string& compute_capability() const = 0;

  virtual const Kernels& kernels() const = 0;

  /// Where the bodies of operations, on the device's queue thread, launch kernels: a simt::Stream.
  virtual void* stream() = 0;
};

/// Those of this machine and build. They are never destroyed: their threads may be at work while the process
/// ends.
const std::vector<Device*>& devices();

/// A tensor's device, if it is not the CPU.
inline Device& of(quantaria::Device* device) { return static_cast<Device&>(*device); }

}  // namespace quantaria::cuda
