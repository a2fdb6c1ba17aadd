#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "cuda/runtime/lane.h"

namespace quantaria::cuda {

/// Copies between host memory and a device's, by way of pinned chunks, as only they are copied while the host
/// goes on: it fills one (or empties one) while the device copies the others. For the device's queue thread.
class Staging {
 public:
  /// Long enough that a chunk takes longer than a copy to begin, short enough that the first one is soon
  /// full.
  static constexpr int64_t kChunkBytes = int64_t{4} << 20;

  explicit Staging(std::shared_ptr<Lane> lane, int64_t chunk_bytes = kChunkBytes)
      : lane_(std::move(lane)), chunk_bytes_(chunk_bytes) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  /// Returns when `host` has been read; the stream's later work finds the bytes there.
  void copy_in(const std::byte* host, std::byte* to, int64_t bytes);
  /// Returns when the bytes are there: what the stream had before has then been done.
  void copy_out(const std::byte* from, std::byte* host, int64_t bytes);

 private:
  struct Chunk {
    std::byte* pinned = nullptr;
    cudaEvent_t copied = nullptr;
  };

  Chunk& chunk(int64_t index);
  void begin_copy_out(int64_t index, const std::byte* from, int64_t bytes);
  int64_t bytes_of(int64_t index, int64_t bytes) const;

  const std::shared_ptr<Lane> lane_;
  const int64_t chunk_bytes_;
  std::array<Chunk, 3> chunks_;
};

}  // namespace quantaria::cuda
