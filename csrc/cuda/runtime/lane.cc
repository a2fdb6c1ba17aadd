#include "cuda/runtime/lane.h"

#include <string_view>
#include <utility>

#include "cuda/arrivals.h"
#include "cuda/runtime/call.h"

namespace quantaria::cuda {
namespace {

/// "`hadamard` (hadamard.cc:27)"
std::string text(const std::source_location& from) {
  std::string_view function = from.function_name();
  function = function.substr(0, function.find('('));
  function = function.substr(function.find_last_of(": ") + 1);
  std::string_view file = from.file_name();
  file = file.substr(file.find_last_of('/') + 1);
  return "`" + std::string(function) + "` (" + std::string(file) + ":" + std::to_string(from.line()) + ")";
}

}  // namespace

Lane::Lane(int ordinal, std::string id) : ordinal_(ordinal), id_(std::move(id)) {
  const DeviceScope scope(ordinal_);
  try {
    open();
  } catch (...) {
    close();
    throw;
  }
}

void Lane::open() {
  const auto check = [&](cudaError_t error) {
    if (error == cudaSuccess) return;
    (void)cudaGetLastError();
    fail(error == cudaErrorMemoryAllocation ? ErrorCode::out_of_memory : ErrorCode::cuda, id_,
         " cannot be used: ", text_of(error));
  };
  check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
  constexpr size_t kArrivalBytes = kArrivalCounters * sizeof *arrivals_;
  void* counters = nullptr;
  check(cudaMalloc(&counters, kArrivalBytes));
  arrivals_ = static_cast<unsigned*>(counters);
  check(cudaMemsetAsync(arrivals_, 0, kArrivalBytes, stream_));
  void* pinned = nullptr;
  check(cudaHostAlloc(&pinned, sizeof *reached_, cudaHostAllocMapped));
  reached_ = static_cast<uint32_t*>(pinned);
  void* there = nullptr;
  check(cudaHostGetDevicePointer(&there, pinned, 0));
  reached_there_ = reinterpret_cast<uintptr_t>(there);
  // The driver's function, as the runtime has none like it; by the runtime, so that nothing links the driver.
  constexpr unsigned kSince = 12000;
  cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
  void* function = nullptr;
  if (cudaGetDriverEntryPointByVersion("cuStreamWriteValue32", &function, kSince, cudaEnableDefault,
                                       &found) == cudaSuccess)
    write_value_ = reinterpret_cast<WriteValue>(function);
  // Not every virtual GPU can do it.
  *reached_ = 1;
  if (write_value_ != nullptr && write_value_(stream_, reached_there_, 0, 0) == 0)
    check(cudaStreamSynchronize(stream_));
  if (__atomic_load_n(reached_, __ATOMIC_ACQUIRE) != 0) write_value_ = nullptr;
  (void)cudaGetLastError();
}

void Lane::close() {
  if (stream_ != nullptr) {
    (void)cudaStreamSynchronize(stream_);
    (void)cudaStreamDestroy(stream_);
  }
  if (arrivals_ != nullptr) (void)cudaFree(arrivals_);
  if (reached_ != nullptr) (void)cudaFreeHost(reached_);
  (void)cudaGetLastError();
}

Lane::~Lane() {
  const DeviceScope scope(ordinal_);
  close();
}

void Lane::begin(const std::source_location& from) {
  const std::lock_guard lock(mutex_);
  if (broken_) throw Error(*broken_);
  if (capturing_) return;  // it is done later, by whoever launches the graph
  forget_done();
  if (write_value_ == nullptr) under_way_.clear();  // the last one alone is known
  under_way_.push_back({++number_, from});
}

void Lane::end() {
  // Refused only by a broken device, which the next call will say.
  if (write_value_ != nullptr && !capturing_) (void)write_value_(stream_, reached_there_, number_, 0);
}

/// Numbers wrap around; those under way lie close together.
void Lane::forget_done() {
  if (write_value_ == nullptr) return;
  const uint32_t reached = __atomic_load_n(reached_, __ATOMIC_ACQUIRE);
  while (!under_way_.empty() && static_cast<int32_t>(under_way_.front().number - reached) <= 0)
    under_way_.pop_front();
}

std::string Lane::culprit() {
  forget_done();
  if (under_way_.empty()) return "outside of any operation";
  return (write_value_ != nullptr ? "in " : "in or before ") + text(under_way_.front().from);
}

std::shared_ptr<const Error> Lane::broken() {
  const std::lock_guard lock(mutex_);
  if (broken_) return broken_;
  if (capturing_) return nullptr;  // the stream must not be asked
  const cudaError_t state = cudaStreamQuery(stream_);
  (void)cudaGetLastError();
  if (state == cudaSuccess || state == cudaErrorNotReady) return nullptr;
  broken_ = std::make_shared<Error>(ErrorCode::cuda, id_ + " broke " + culprit() + ": " + text_of(state) +
                                                         "; it does no more work in this process");
  return broken_;
}

void Lane::require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  (void)cudaGetLastError();
  if (const std::shared_ptr<const Error> cause = broken()) throw Error(*cause);
  fail(error == cudaErrorMemoryAllocation ? ErrorCode::out_of_memory : ErrorCode::cuda, id_, ": ", what, ": ",
       text_of(error));
}

}  // namespace quantaria::cuda
