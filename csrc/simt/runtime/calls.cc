// The calls of cuda_runtime_api.h, in its order.
#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <fstream>
#include <memory>
#include <string>
#include <utility>

#include "core/error.h"
#include "simt/emulator/fault.h"
#include "simt/runtime/state.h"

namespace quantaria::simt::runtime {
namespace {

bool is_pinned(const void* place, size_t bytes) {
  const Lock lock(state().mutex);
  const auto* const address = static_cast<const std::byte*>(place);
  auto found = state().pinned.upper_bound(address);
  if (found == state().pinned.begin()) return false;
  --found;
  return address + bytes <= found->first + found->second.second;
}

void require_device(const Device& device, const void* place, size_t bytes, const char* what) {
  if (!device.memory->holds(place, bytes))
    throw emulator::Fault(std::string(what) + " outside of the device's memory");
}

cudaError_t allocate(Device& device, void** block, size_t bytes) {
  const auto wanted = static_cast<int64_t>(bytes);
  const Lock lock(state().mutex);
  if (wanted > device.facts.memory_bytes - device.used) return failed(cudaErrorMemoryAllocation);
  try {
    std::shared_ptr<std::byte> fresh = device.memory->allocate(wanted);
    *block = fresh.get();
    device.blocks.emplace(*block, std::pair{std::move(fresh), wanted});
  } catch (const quantaria::Error&) {
    return failed(cudaErrorMemoryAllocation);
  }
  device.used += wanted;
  return cudaSuccess;
}

/// cuStreamWriteValue32
int write_value(cudaStream_t stream, uintptr_t address, uint32_t value, unsigned) {
  if (const cudaError_t error = enter("cuStreamWriteValue32", stream->device); error != cudaSuccess)
    return error;
  give_bounded(stream, [address, value] {
    __atomic_store_n(reinterpret_cast<uint32_t*>(address), value, __ATOMIC_RELEASE);
  });
  return 0;
}

/// cuDevicePrimaryCtxGetState
int context_state(int device, unsigned* flags, int* active) {
  *flags = 0;
  *active = has_context(device) ? 1 : 0;
  return 0;
}

int launch_work(cudaStream_t stream, std::function<const char*()> work) {
  if (const cudaError_t error = enter("launch", stream->device); error != cudaSuccess) return error;
  give_bounded(stream, [work = std::move(work)] {
    if (const char* const fault = work()) throw emulator::Fault(fault);
  });
  return cudaSuccess;
}

bool holds(const CUstream_st* stream, const void* place, size_t bytes) {
  return device_of(stream->device).memory->holds(place, bytes);
}

void make_context(int device) {
  const Lock lock(state().mutex);
  device_of(device).context = true;
}

constexpr StreamServices kServices{launch_work, holds};

}  // namespace
}  // namespace quantaria::simt::runtime

namespace quantaria::simt::emulator {

void submit(void* stream, const LaunchShape& shape, std::function<void()> launch) {
  auto* const queue = static_cast<cudaStream_t>(stream);
  const cudaError_t error = runtime::enter("launch", queue->device);
  if (error != cudaSuccess) fail(ErrorCode::cuda, "kernel launch: ", cudaGetErrorString(error));
  static const char* const trace = std::getenv("QUANTARIA_SIMT_TRACE");
  if (trace != nullptr) {
    Dl_info module{};
    (void)dladdr(shape.kernel, &module);
    std::ofstream(trace, std::ios::app)
        << shape.blocks << ' ' << shape.threads << ' ' << shape.shared << ' '
        << static_cast<const std::byte*>(shape.kernel) - static_cast<const std::byte*>(module.dli_fbase)
        << '\n';
    return;
  }
  runtime::give_bounded(queue, std::move(launch));
}

}  // namespace quantaria::simt::emulator

using namespace quantaria::simt::runtime;

/// Leaves the function with what `call` says, unless that is success.
#define QUANTARIA_ENTER(...)                                                                          \
  if (const cudaError_t entered = enter(__func__ __VA_OPT__(, ) __VA_ARGS__); entered != cudaSuccess) \
  return entered

#define QUANTARIA_ENTER_TO_WAIT(stream) \
  if (const cudaError_t entered = enter_to_wait(__func__, stream); entered != cudaSuccess) return entered

cudaError_t cudaDriverGetVersion(int* version) {
  QUANTARIA_ENTER();
  *version = state().machine.driver;
  return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int* version) {
  QUANTARIA_ENTER();
  *version = state().machine.runtime;
  return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  QUANTARIA_ENTER();
  if (state().machine.driver < state().machine.runtime) return failed(cudaErrorInsufficientDriver);
  if (state().devices.empty()) return failed(cudaErrorNoDevice);
  *count = static_cast<int>(state().devices.size());
  return cudaSuccess;
}

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  QUANTARIA_ENTER(device);
  const Gpu& facts = device_of(device).facts;
  *properties = {};
  facts.name.copy(properties->name, sizeof properties->name - 1);
  properties->major = facts.major;
  properties->minor = facts.minor;
  properties->totalGlobalMem = static_cast<size_t>(facts.memory_bytes);
  return cudaSuccess;
}

cudaError_t cudaGetDevice(int* device) {
  *device = thread_state().device;
  return cudaSuccess;
}

cudaError_t cudaSetDevice(int device) {
  QUANTARIA_ENTER(device);
  thread_state().device = device;
  make_context(device);
  return cudaSuccess;
}

cudaError_t cudaGetLastError() { return std::exchange(thread_state().last_error, cudaSuccess); }

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorMemoryAllocation:
      return "cudaErrorMemoryAllocation";
    case cudaErrorInitializationError:
      return "cudaErrorInitializationError";
    case cudaErrorIllegalAddress:
      return "cudaErrorIllegalAddress";
    case cudaErrorStreamCaptureUnsupported:
      return "cudaErrorStreamCaptureUnsupported";
    case cudaErrorStreamCaptureInvalidated:
      return "cudaErrorStreamCaptureInvalidated";
    case cudaErrorLaunchFailure:
      return "cudaErrorLaunchFailure";
    default:
      return "cudaError";
  }
}

const char* cudaGetErrorString(cudaError_t error) {
  switch (error) {
    case cudaErrorInvalidValue:
      return "invalid argument";
    case cudaErrorMemoryAllocation:
      return "out of memory";
    case cudaErrorInitializationError:
      return "initialization error";
    case cudaErrorIllegalAddress:
      return "an illegal memory access was encountered";
    case cudaErrorLaunchFailure:
      break;
    default:
      return "an error of the runtime that the host plays";
  }
  const Lock lock(state().mutex);
  return state().last_cause.empty() ? "unspecified launch failure" : state().last_cause.c_str();
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  QUANTARIA_ENTER(thread_state().device);
  make_context(thread_state().device);
  auto made = std::make_unique<CUstream_st>();
  made->services = &kServices;
  made->device = thread_state().device;
  const Lock lock(state().mutex);
  state().streams.insert(made.get());
  *stream = made.release();
  return cudaSuccess;
}

cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  run(stream, stream->given);
  const std::unique_ptr<CUstream_st> gone(stream);
  const Lock lock(state().mutex);
  state().streams.erase(stream);
  return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  QUANTARIA_ENTER_TO_WAIT(stream);
  uint64_t position = 0;
  {
    const Lock lock(state().mutex);
    position = stream->given;
  }
  run(stream, position);
  Device& device = device_of(stream->device);
  carry_out(device, [&] { device.memory->require_intact(); });
  const Lock lock(state().mutex);
  return device.broken == cudaSuccess ? cudaSuccess : failed(device.broken);
}

cudaError_t cudaStreamQuery(cudaStream_t stream) {
  QUANTARIA_ENTER_TO_WAIT(stream);
  const Lock lock(state().mutex);
  return stream->done == stream->given ? cudaSuccess : cudaErrorNotReady;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  QUANTARIA_ENTER(thread_state().device);
  *event = std::make_unique<CUevent_st>().release();
  return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t event) {
  const std::unique_ptr<CUevent_st> gone(event);
  return cudaSuccess;
}

cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  QUANTARIA_ENTER_TO_WAIT(stream);
  event->stream = stream;
  event->moment = std::make_shared<CUevent_st::Moment>();
  event->position =
      give(stream, [moment = event->moment] { moment->time = std::chrono::steady_clock::now(); });
  return cudaSuccess;
}

cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  if (event->stream == nullptr) return enter(__func__);
  QUANTARIA_ENTER(event->stream->device);
  run(event->stream, event->position);
  const Lock lock(state().mutex);
  const cudaError_t broken = device_of(event->stream->device).broken;
  return broken == cudaSuccess ? broken : failed(broken);
}

cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t end) {
  QUANTARIA_ENTER();
  if (start->stream == nullptr || end->stream == nullptr) return failed(cudaErrorInvalidValue);
  *milliseconds = std::chrono::duration<float, std::milli>(end->moment->time - start->moment->time).count();
  return cudaSuccess;
}

cudaError_t cudaMemPoolCreate(cudaMemPool_t* pool, const cudaMemPoolProps* properties) {
  QUANTARIA_ENTER(properties->location.id);
  *pool = std::make_unique<CUmemPoolHandle_st>(CUmemPoolHandle_st{properties->location.id}).release();
  return cudaSuccess;
}

cudaError_t cudaMemPoolDestroy(cudaMemPool_t pool) {
  const std::unique_ptr<CUmemPoolHandle_st> gone(pool);
  return cudaSuccess;
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void*) {
  QUANTARIA_ENTER(pool->device);
  return cudaSuccess;
}

cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr, void* value) {
  QUANTARIA_ENTER(pool->device);
  const Lock lock(state().mutex);
  const auto used = static_cast<uint64_t>(device_of(pool->device).used);
  std::memcpy(value, &used, sizeof used);  // nothing is kept for reuse: reserved is used
  return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t) {
  QUANTARIA_ENTER(pool->device);
  return cudaSuccess;
}

cudaError_t cudaMallocFromPoolAsync(void** block, size_t bytes, cudaMemPool_t pool, cudaStream_t stream) {
  QUANTARIA_ENTER(pool->device);
  if (stream->noted) return failed(cudaErrorStreamCaptureUnsupported);
  return allocate(device_of(pool->device), block, bytes);
}

// The block stays until the stream has come to this, even if it is never used again.
cudaError_t cudaFreeAsync(void* block, cudaStream_t stream) {
  const cudaError_t entered = enter(__func__, stream->device);
  if (stream->noted) return failed(cudaErrorStreamCaptureUnsupported);
  Device& device = device_of(stream->device);
  std::shared_ptr<std::byte> freed;
  {
    const Lock lock(state().mutex);
    const auto found = device.blocks.find(block);
    if (found == device.blocks.end()) return failed(cudaErrorInvalidValue);
    freed = found->second.first;
  }
  // A piece's captures go when it is done, or dropped by a broken device.
  auto back = std::shared_ptr<void>(nullptr, [&device, block, freed = std::move(freed)](void*) {
    const Lock lock(state().mutex);
    const auto found = device.blocks.find(block);
    device.used -= found->second.second;
    device.blocks.erase(found);
  });
  give(stream, [back = std::move(back)] {});
  return entered;
}

cudaError_t cudaMalloc(void** block, size_t bytes) {
  QUANTARIA_ENTER(thread_state().device);
  return allocate(device_of(thread_state().device), block, bytes);
}

cudaError_t cudaFree(void* block) {
  Device& device = device_of(thread_state().device);
  const Lock lock(state().mutex);
  const auto found = device.blocks.find(block);
  if (found == device.blocks.end()) return failed(cudaErrorInvalidValue);
  device.used -= found->second.second;
  device.blocks.erase(found);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  QUANTARIA_ENTER(thread_state().device);
  const Device& device = device_of(thread_state().device);
  const Lock lock(state().mutex);
  *total = static_cast<size_t>(device.facts.memory_bytes);
  *free = static_cast<size_t>(device.facts.memory_bytes - device.used);
  return cudaSuccess;
}

cudaError_t cudaHostAlloc(void** block, size_t bytes, unsigned) {
  QUANTARIA_ENTER();
  auto memory = std::make_unique<std::byte[]>(bytes);
  *block = memory.get();
  const Lock lock(state().mutex);
  const std::byte* const key = memory.get();
  state().pinned.emplace(key, std::pair{std::move(memory), bytes});
  return cudaSuccess;
}

cudaError_t cudaFreeHost(void* block) {
  const Lock lock(state().mutex);
  return state().pinned.erase(static_cast<std::byte*>(block)) == 1 ? cudaSuccess : cudaErrorInvalidValue;
}

cudaError_t cudaHostGetDevicePointer(void** device, void* host, unsigned) {
  QUANTARIA_ENTER();
  *device = host;
  return cudaSuccess;
}

// From memory that is not pinned, CUDA's copy is not asynchronous: whoever passes it by mistake is told.
cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  QUANTARIA_ENTER(stream->device);
  const bool inwards = kind == cudaMemcpyHostToDevice;
  if (!is_pinned(inwards ? from : to, bytes)) return failed(cudaErrorInvalidValue);
  const Device& device = device_of(stream->device);
  give_bounded(stream, [=, &device] {
    require_device(device, inwards ? to : from, bytes, "a copy");
    std::memcpy(to, from, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
  QUANTARIA_ENTER(stream->device);
  const Device& device = device_of(stream->device);
  give_bounded(stream, [=, &device] {
    require_device(device, to, bytes, "a fill");
    std::memset(to, value, bytes);
  });
  return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
  QUANTARIA_ENTER_TO_WAIT(stream);
  const Lock lock(state().mutex);
  stream->noted.emplace();
  stream->spoilt = false;
  return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  const cudaError_t entered = enter(__func__, stream->device);
  const Lock lock(state().mutex);
  auto noted = std::exchange(stream->noted, std::nullopt);  // it ends, whether it has worked or not
  if (entered != cudaSuccess) return entered;
  if (!noted) return failed(cudaErrorInvalidValue);
  if (stream->spoilt) return failed(cudaErrorStreamCaptureInvalidated);
  *graph = std::make_unique<CUgraph_st>(CUgraph_st{std::move(*noted)}).release();
  return cudaSuccess;
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t* ready, cudaGraph_t graph, unsigned long long) {
  QUANTARIA_ENTER();
  *ready = std::make_unique<CUgraphExec_st>(CUgraphExec_st{graph->pieces}).release();
  return cudaSuccess;
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t ready, cudaStream_t stream) {
  QUANTARIA_ENTER(stream->device);
  for (const std::function<void()>& piece : ready->pieces) give_bounded(stream, piece);
  return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  const std::unique_ptr<CUgraph_st> gone(graph);
  return cudaSuccess;
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t ready) {
  const std::unique_ptr<CUgraphExec_st> gone(ready);
  return cudaSuccess;
}

cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function, unsigned,
                                             unsigned long long, cudaDriverEntryPointQueryResult* found) {
  QUANTARIA_ENTER();
  *function = std::strcmp(symbol, "cuStreamWriteValue32") == 0 ? reinterpret_cast<void*>(&write_value)
              : std::strcmp(symbol, "cuDevicePrimaryCtxGetState") == 0
                  ? reinterpret_cast<void*>(&context_state)
                  : nullptr;
  *found = *function != nullptr ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
  return cudaSuccess;
}
