#pragma once

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <source_location>
#include <string>

#include "core/error.h"

namespace quantaria::cuda {

/// The one stream of a device, and how far it has come: after each operation it writes that operation's
/// number into host memory. An error that breaks the device surfaces at whatever call comes next; the number
/// tells which operation it was. Where the device cannot write it, the last operation before the error is
/// told as that.
class Lane {
 public:
  /// ERR_CUDA if the device cannot be used.
  Lane(int ordinal, std::string id);
  ~Lane();
  Lane(const Lane&) = delete;
  Lane& operator=(const Lane&) = delete;

  int ordinal() const { return ordinal_; }
  const std::string& id() const { return id_; }
  cudaStream_t stream() const { return stream_; }
  /// Of launches on the stream, one after the other (cuda/arrivals.h).
  unsigned* arrivals() const { return arrivals_; }

  /// Around the work of an operation. `begin` throws if the device is broken.
  void begin(const std::source_location& from);
  void end();

  /// While the stream notes work down instead of doing it (Device::begin_capture).
  void set_capturing(bool now) { capturing_ = now; }
  bool capturing() const { return capturing_; }
  /// ERR_UNSUPPORTED during a capture, for what waits for the stream.
  void require_no_capture(const char* what) const {
    if (capturing_) fail(ErrorCode::unsupported, id_, ": ", what, " cannot be part of a graph");
  }

  /// Throws if a call failed: for a broken device the operation that broke it, whichever call it was, else
  /// what the call was to do.
  void require(cudaError_t error, const char* what);

  /// What broke the device, or null.
  std::shared_ptr<const Error> broken();

  /// Waits until all work is done.
  void finish() {
    require_no_capture("waiting for the device");
    require(cudaStreamSynchronize(stream_), "waiting for it");
  }

 private:
  using WriteValue = int (*)(cudaStream_t, uintptr_t address, uint32_t value, unsigned flags);
  struct Operation {
    uint32_t number;
    std::source_location from;
  };

  void open();
  void close();
  void forget_done();
  std::string culprit();

  const int ordinal_;
  const std::string id_;
  cudaStream_t stream_ = nullptr;
  unsigned* arrivals_ = nullptr;
  uint32_t* reached_ = nullptr;       // pinned; the device writes it
  uintptr_t reached_there_ = 0;       // as the device sees it
  WriteValue write_value_ = nullptr;  // null where the device cannot
  std::atomic<bool> capturing_{false};

  std::mutex mutex_;  // of what follows: JavaScript's thread allocates while the queue's works
  std::deque<Operation> under_way_;
  uint32_t number_ = 0;
  std::shared_ptr<const Error> broken_;
};

}  // namespace quantaria::cuda
