#include "cuda/runtime/staging.h"

#include <algorithm>
#include <cstring>

#include "cuda/runtime/call.h"

namespace quantaria::cuda {

Staging::~Staging() {
  const DeviceScope scope(lane_->ordinal());
  (void)cudaStreamSynchronize(lane_->stream());
  for (const Chunk& chunk : chunks_) {
    if (chunk.copied != nullptr) (void)cudaEventDestroy(chunk.copied);
    if (chunk.pinned != nullptr) (void)cudaFreeHost(chunk.pinned);
  }
  (void)cudaGetLastError();
}

/// They take turns, and are made when they are first needed: pinning memory takes its time.
Staging::Chunk& Staging::chunk(int64_t index) {
  Chunk& chosen = chunks_[static_cast<size_t>(index) % chunks_.size()];
  if (chosen.copied == nullptr)
    lane_->require(cudaEventCreateWithFlags(&chosen.copied, cudaEventDisableTiming), "making an event");
  if (chosen.pinned == nullptr) {
    void* pinned = nullptr;
    lane_->require(cudaHostAlloc(&pinned, static_cast<size_t>(chunk_bytes_), 0), "pinning host memory");
    chosen.pinned = static_cast<std::byte*>(pinned);
  }
  return chosen;
}

int64_t Staging::bytes_of(int64_t index, int64_t bytes) const {
  return std::min(chunk_bytes_, bytes - index * chunk_bytes_);
}

void Staging::copy_in(const std::byte* host, std::byte* to, int64_t bytes) {
  lane_->require_no_capture("a copy from the host");
  for (int64_t i = 0; i * chunk_bytes_ < bytes; ++i) {
    const Chunk& staged = chunk(i);
    const auto size = static_cast<size_t>(bytes_of(i, bytes));
    lane_->require(cudaEventSynchronize(staged.copied), "waiting for a copy");
    std::memcpy(staged.pinned, host + i * chunk_bytes_, size);
    lane_->require(
        cudaMemcpyAsync(to + i * chunk_bytes_, staged.pinned, size, cudaMemcpyHostToDevice, lane_->stream()),
        "copying to it");
    lane_->require(cudaEventRecord(staged.copied, lane_->stream()), "recording an event");
  }
}

void Staging::begin_copy_out(int64_t index, const std::byte* from, int64_t bytes) {
  if (index * chunk_bytes_ >= bytes) return;
  const Chunk& staged = chunk(index);
  lane_->require(
      cudaMemcpyAsync(staged.pinned, from + index * chunk_bytes_, static_cast<size_t>(bytes_of(index, bytes)),
                      cudaMemcpyDeviceToHost, lane_->stream()),
      "copying from it");
  lane_->require(cudaEventRecord(staged.copied, lane_->stream()), "recording an event");
}

void Staging::copy_out(const std::byte* from, std::byte* host, int64_t bytes) {
  lane_->require_no_capture("a copy to the host");
  const auto ahead = static_cast<int64_t>(chunks_.size());
  for (int64_t i = 0; i < ahead; ++i) begin_copy_out(i, from, bytes);
  for (int64_t i = 0; i * chunk_bytes_ < bytes; ++i) {
    const Chunk& staged = chunk(i);
    lane_->require(cudaEventSynchronize(staged.copied), "copying from it");
    std::memcpy(host + i * chunk_bytes_, staged.pinned, static_cast<size_t>(bytes_of(i, bytes)));
    begin_copy_out(i + ahead, from, bytes);
  }
}

}  // namespace quantaria::cuda
