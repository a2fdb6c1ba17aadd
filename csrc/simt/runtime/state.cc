#include "simt/runtime/state.h"

#include <utility>

#include "core/allocator.h"

namespace quantaria::simt::runtime {
namespace {

void populate(State& state) {
  state.devices.clear();
  for (const Gpu& gpu : state.machine.gpus) {
    state.devices.push_back(std::make_unique<Device>());
    state.devices.back()->facts = gpu;
    if (gpu.memory_bytes == 0) state.devices.back()->facts.memory_bytes = physical_memory();
  }
}

}  // namespace

State& state() {
  static State* const one = [] {
    auto made = std::make_unique<State>();
    populate(*made);
    return made.release();
  }();
  return *one;
}

ThreadState& thread_state() {
  thread_local ThreadState one;
  return one;
}

cudaError_t failed(cudaError_t error) { return thread_state().last_error = error; }

cudaError_t enter(const char* name, int device) {
  State& all = state();
  const Lock lock(all.mutex);
  if (all.recording) all.calls.emplace_back(name);
  for (auto plan = all.planned.begin(); plan != all.planned.end(); ++plan) {
    if (plan->name != name || plan->skipped-- > 0) continue;
    const cudaError_t error = plan->error;
    all.planned.erase(plan);
    return failed(error);
  }
  if (device < 0) return cudaSuccess;
  if (device >= static_cast<int>(all.devices.size())) return failed(cudaErrorInvalidDevice);
  const cudaError_t broken = all.devices[static_cast<size_t>(device)]->broken;
  return broken == cudaSuccess ? broken : failed(broken);
}

cudaError_t enter_to_wait(const char* name, cudaStream_t stream) {
  const cudaError_t entered = enter(name, stream->device);
  const Lock lock(state().mutex);
  if (entered != cudaSuccess || !stream->noted) return entered;
  stream->spoilt = true;
  return failed(cudaErrorStreamCaptureUnsupported);
}

Device& device_of(int index) { return *state().devices[static_cast<size_t>(index)]; }

void carry_out(Device& device, const std::function<void()>& piece) {
  {
    const Lock lock(state().mutex);
    if (device.broken == cudaSuccess && device.pieces++ == device.breaks_at) device.broken = device.breaks_by;
    if (device.broken != cudaSuccess) return;
  }
  const emulator::Options before = std::exchange(emulator::options(), state().launches);
  emulator::options().global = device.memory.get();
  try {
    piece();
  } catch (const std::exception& fault) {
    const Lock lock(state().mutex);
    device.broken = cudaErrorLaunchFailure;
    device.cause = state().last_cause = fault.what();
  }
  emulator::options() = before;
}

void run(cudaStream_t stream, uint64_t position) {
  const Lock running(stream->running);
  for (;;) {
    std::function<void()> piece;
    {
      const Lock lock(state().mutex);
      if (stream->done >= position) return;
      piece = std::move(stream->waiting.front());
      stream->waiting.pop_front();
    }
    carry_out(device_of(stream->device), piece);
    piece = nullptr;  // what it held goes before it counts as done
    const Lock lock(state().mutex);
    ++stream->done;
  }
}

uint64_t give(cudaStream_t stream, std::function<void()> piece) {
  const Lock lock(state().mutex);
  if (stream->noted) {
    stream->noted->push_back(std::move(piece));
    return stream->given;
  }
  stream->waiting.push_back(std::move(piece));
  return ++stream->given;
}

void give_bounded(cudaStream_t stream, std::function<void()> piece) {
  constexpr uint64_t kMostWaiting = 512;
  const uint64_t position = give(stream, std::move(piece));
  if (position > kMostWaiting) run(stream, position - kMostWaiting);
}

void become(Machine machine) {
  State& all = state();
  const Lock lock(all.mutex);
  all.machine = std::move(machine);
  populate(all);
  all.planned.clear();
  all.calls.clear();
  all.last_cause.clear();
  all.recording = true;
  thread_state() = {};
}

void emulate_launches(emulator::Options options) {
  const Lock lock(state().mutex);
  state().launches = std::move(options);
}

void fail_call(std::string name, cudaError_t error, int skipped) {
  const Lock lock(state().mutex);
  state().planned.push_back({std::move(name), error, skipped});
}

void fail_work(int gpu, cudaError_t error, int skipped) {
  Device& device = device_of(gpu);
  const Lock lock(state().mutex);
  device.breaks_at = device.pieces + skipped;
  device.breaks_by = error;
}

std::vector<std::string> calls() {
  const Lock lock(state().mutex);
  return state().calls;
}

bool has_context(int gpu) {
  const Lock lock(state().mutex);
  return device_of(gpu).context;
}

int64_t live_blocks() {
  const Lock lock(state().mutex);
  auto count = static_cast<int64_t>(state().pinned.size());
  for (const auto& device : state().devices) count += static_cast<int64_t>(device->blocks.size());
  return count;
}

int64_t waiting_work() {
  const Lock lock(state().mutex);
  int64_t count = 0;
  for (const cudaStream_t stream : state().streams) count += static_cast<int64_t>(stream->waiting.size());
  return count;
}

}  // namespace quantaria::simt::runtime
