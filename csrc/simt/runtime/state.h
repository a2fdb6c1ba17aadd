#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime_api.h"
#include "simt/emulator/global_memory.h"
#include "simt/runtime/controls.h"
#include "simt/runtime/stream.h"

struct CUmemPoolHandle_st {
  int device = 0;
};

struct CUevent_st {
  struct Moment {
    std::chrono::steady_clock::time_point time;
  };
  cudaStream_t stream = nullptr;
  uint64_t position = 0;  // work of the stream that came before
  std::shared_ptr<Moment> moment;
};

struct CUgraph_st {
  std::vector<std::function<void()>> pieces;
};

struct CUgraphExec_st {
  std::vector<std::function<void()>> pieces;
};

/// What the runtime that the host plays has between two calls (calls.cc).
namespace quantaria::simt::runtime {

using Lock = std::lock_guard<std::mutex>;

struct Device {
  Gpu facts;
  std::shared_ptr<emulator::GlobalMemory> memory = std::make_shared<emulator::GlobalMemory>();
  std::map<const void*, std::pair<std::shared_ptr<std::byte>, int64_t>> blocks;
  int64_t used = 0;
  bool context = false;
  int64_t pieces = 0;       // of work done
  int64_t breaks_at = -1;   // the piece that breaks it
  cudaError_t breaks_by{};  // and how
  cudaError_t broken = cudaSuccess;
  std::string cause;  // of a kernel's fault
};

struct PlannedCall {
  std::string name;
  cudaError_t error;
  int skipped;
};

struct State {
  std::mutex mutex;
  Machine machine;
  emulator::Options launches;
  std::vector<std::unique_ptr<Device>> devices;
  std::map<const std::byte*, std::pair<std::unique_ptr<std::byte[]>, size_t>> pinned;
  std::vector<PlannedCall> planned;
  std::vector<std::string> calls;
  std::set<cudaStream_t> streams;
  std::string last_cause;
  bool recording = false;  // only for tests: a process that runs on would keep ever more names
};

/// The one of the process; never destroyed, as devices may be at work while it ends.
State& state();

Device& device_of(int index);

/// What is CUDA's for each thread.
struct ThreadState {
  int device = 0;
  cudaError_t last_error = cudaSuccess;
};
ThreadState& thread_state();

/// Remembers an error as the thread's last one.
cudaError_t failed(cudaError_t error);

/// What every call does first: says what was planned for it, or why the device that it concerns does no more.
cudaError_t enter(const char* name, int device = -1);

/// The same for what a stream that notes work down refuses, and what is noted down is of no use from then on.
cudaError_t enter_to_wait(const char* name, cudaStream_t stream);

/// Queues a piece of work, or notes it down. Returns its position.
uint64_t give(cudaStream_t stream, std::function<void()> piece);

/// The same; work that nobody waits for is bounded, as a GPU's queue is.
void give_bounded(cudaStream_t stream, std::function<void()> piece);

/// Does the stream's work up to a position.
void run(cudaStream_t stream, uint64_t position);

/// Does one piece of work, unless the device is broken.
void carry_out(Device& device, const std::function<void()>& piece);

}  // namespace quantaria::simt::runtime
