#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/device.h"
#include "core/matrix.h"
#include "cuda/kernels.h"

namespace quantaria::cuda {

/// Work that was noted down once and is given to the device again with one call, as often as one likes.
class Graph {
 public:
  virtual ~Graph() = default;

  /// For tasks of the device's queue.
  virtual void launch() = 0;
};

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
  /// For those kernels: kArrivalCounters counters in the device's memory (cuda/arrivals.h).
  virtual unsigned* arrivals() = 0;

  /// c = a b + bias as Kernels::gemm has it, by the vendor's library, if the user has asked for one and this
  /// is a product for it (cublaslt/products.h). False: nothing is done. ERR_NATIVE_LOAD, saying why, if the
  /// library that was asked for cannot be had.
  virtual bool multiply_by_library(const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias,
                                   const Matrix& c) = 0;

  /// What is queued between begin_capture and end_capture, tasks of the queue, is noted down instead of done.
  /// open_capture comes first, on the thread that queues them: memory taken from then on is the graph's until
  /// it ends. ERR_ARGUMENT if a capture is open already. end_capture throws what went wrong with any of the
  /// operations: those that wait for the device cannot be noted down (ERR_UNSUPPORTED).
  virtual void open_capture() = 0;
  virtual void begin_capture() = 0;
  virtual std::shared_ptr<Graph> end_capture() = 0;
  /// For tasks of the queue.
  virtual bool capturing() = 0;
};

/// Those of this machine and build. They are never destroyed: their threads may be at work while the process
/// ends.
const std::vector<Device*>& devices();

/// A tensor's device, if it is not the CPU.
inline Device& of(quantaria::Device* device) { return static_cast<Device&>(*device); }

}  // namespace quantaria::cuda
