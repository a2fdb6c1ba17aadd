#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cuda_runtime_api.h"
#include "simt/emulator/options.h"

/// What tests tell the runtime that the host plays, and ask it.
namespace quantaria::simt::runtime {

struct Gpu {
  std::string name = "CUDA kernels emulated on the CPU";
  int major = 8;
  int minor = 0;
  int64_t memory_bytes = 0;  // 0: what the host has
};

/// The machine that the runtime pretends to run on.
struct Machine {
  int driver = 13000;  // 0: none is installed
  int runtime = 13000;
  std::vector<Gpu> gpus{Gpu{}};
};

/// How every kernel is run from here on.
void emulate_launches(emulator::Options options);

/// From here on this machine, with nothing broken, planned or recorded. No stream and no block may be left.
void become(Machine machine);

/// The call of this name after `skipped` others fails, and does nothing else. "launch" is that of a kernel.
void fail_call(std::string name, cudaError_t error, int skipped = 0);

/// The piece of work (a kernel, a copy, a fill) that this GPU comes to after `skipped` others breaks it: from
/// then on it does nothing, and every call that concerns it says `error`, as after an illegal access.
void fail_work(int gpu, cudaError_t error, int skipped = 0);

/// Names of all calls since become(), in order.
std::vector<std::string> calls();

/// Whether anybody has used this GPU, so that it has a context.
bool has_context(int gpu);

/// Blocks of GPU memory and of pinned memory that have not been given back.
int64_t live_blocks();

/// Pieces of work that a GPU has not come to.
int64_t waiting_work();

}  // namespace quantaria::simt::runtime
