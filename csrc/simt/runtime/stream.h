#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <optional>
#include <vector>

struct CUstream_st;

namespace quantaria::simt::runtime {

/// What a library that is loaded at run time, and so is not linked with this one, asks of the device by way
/// of a stream (csrc/simt/cublaslt).
struct StreamServices {
  /// Queues work as a launch does; the work returns what breaks the device, or null. A cudaError_t.
  int (*launch)(CUstream_st*, std::function<const char*()> work);
  /// Whether all of it lies in one block of the device's memory.
  bool (*holds)(const CUstream_st*, const void* place, size_t bytes);
};

}  // namespace quantaria::simt::runtime

/// A stream of the runtime that the host plays: pieces of work that are done one after the other, as late as
/// CUDA allows (when someone waits), so that whoever relies on more than the order is found out.
struct CUstream_st {
  const quantaria::simt::runtime::StreamServices* services = nullptr;
  int device = 0;
  std::mutex running;  // held while a piece is done
  // What follows is guarded by the runtime's own lock.
  std::deque<std::function<void()>> waiting;
  uint64_t given = 0;
  uint64_t done = 0;
  std::optional<std::vector<std::function<void()>>> noted;  // while it captures a graph
  bool spoilt = false;                                      // by a call that had no place in the capture
};

namespace quantaria::simt::emulator {

/// What a launch asks of a multiprocessor.
struct LaunchShape {
  uint64_t blocks;
  uint64_t threads;  // of a block
  uint64_t shared;   // bytes of a block
  const void* kernel;
};

/// Queues a kernel's launch; `stream` is a CUstream_st. ERR_CUDA if its device does no more work. With
/// QUANTARIA_SIMT_TRACE=<file> it only writes the shape there, one line a launch, and where in the addon the
/// kernel lies: for predictions.
void submit(void* stream, const LaunchShape& shape, std::function<void()> launch);

}  // namespace quantaria::simt::emulator
