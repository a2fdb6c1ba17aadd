#include "cuda/runtime/device.h"

#include <future>
#include <utility>
#include <vector>

#include "cuda/runtime/call.h"

namespace quantaria::cuda {
namespace {

thread_local const RuntimeDevice* device_at_work = nullptr;  // of the queue's thread

}  // namespace

RuntimeDevice::Ready::~Ready() {
  const DeviceScope scope(lane->ordinal());
  if (products) (void)cudaStreamSynchronize(lane->stream());
  products = nullptr;
  for (const cudaEvent_t event : {timer_start, timer_end})
    if (event != nullptr) (void)cudaEventDestroy(event);
}

RuntimeDevice::Ready& RuntimeDevice::ready() {
  const std::lock_guard lock(mutex_);
  if (!ready_) ready_ = std::make_unique<Ready>(facts_, chunk_bytes_);
  return *ready_;
}

std::shared_ptr<Storage> RuntimeDevice::allocate(int64_t bytes) {
  std::shared_ptr<std::byte> block = ready().pool->allocate(bytes, [this] { wait_for_freed(); });
  std::byte* const data = block.get();
  return std::make_shared<Storage>(std::move(block), data, bytes, true);
}

/// Tensors that nobody else holds go with the last operation that is queued for them: for all but the queue
/// itself, which has to free what it holds.
void RuntimeDevice::wait_for_freed() {
  if (device_at_work != this) {
    const auto come_to = std::make_shared<std::promise<void>>();
    queue_.post([come_to] { come_to->set_value(); });
    come_to->get_future().wait();
  }
  ready().lane->finish();
}

MemoryCounters RuntimeDevice::memory() const {
  const std::lock_guard lock(mutex_);
  return ready_ ? ready_->pool->counters() : MemoryCounters{};
}

void RuntimeDevice::post(std::function<void()> task) {
  // The queue has one thread, which works for this device only; operations say it if the device is not there.
  queue_.post([this, task = std::move(task)] {
    (void)cudaSetDevice(facts_.ordinal);
    device_at_work = this;
    task();
  });
}

void RuntimeDevice::copy_in(const std::byte* host, std::byte* to, int64_t bytes) {
  ready().staging.copy_in(host, to, bytes);
}

void RuntimeDevice::copy_out(const std::byte* from, std::byte* host, int64_t bytes) {
  ready().staging.copy_out(from, host, bytes);
}

void RuntimeDevice::zero(std::byte* to, int64_t bytes) {
  if (bytes == 0) return;
  Lane& lane = *ready().lane;
  lane.require(cudaMemsetAsync(to, 0, static_cast<size_t>(bytes), lane.stream()), "filling with zeros");
}

void RuntimeDevice::start_timer() {
  Ready& now = ready();
  now.lane->require_no_capture("a timer");
  for (cudaEvent_t* event : {&now.timer_start, &now.timer_end})
    if (*event == nullptr)
      now.lane->require(cudaEventCreateWithFlags(event, cudaEventDefault), "making an event");
  now.lane->require(cudaEventRecord(now.timer_start, now.lane->stream()), "starting a timer");
}

double RuntimeDevice::stop_timer() {
  Ready& now = ready();
  now.lane->require_no_capture("a timer");
  if (now.timer_end == nullptr) fail(ErrorCode::argument, id(), ": the timer was not started");
  now.lane->require(cudaEventRecord(now.timer_end, now.lane->stream()), "stopping a timer");
  now.lane->require(cudaEventSynchronize(now.timer_end), "stopping a timer");
  float milliseconds = 0;
  now.lane->require(cudaEventElapsedTime(&milliseconds, now.timer_start, now.timer_end), "reading a timer");
  return milliseconds / 1e3;
}

bool RuntimeDevice::multiply_by_library(const ConstMatrix& a, const ConstMatrix& b, const ConstMatrix* bias,
                                        const Matrix& c) {
  if (!cublaslt::takes(a, b, bias, c)) return false;
  const cublaslt::Library* const library = cublaslt::wanted();
  if (library == nullptr) return false;
  Ready& now = ready();
  if (!now.products) now.products = std::make_unique<cublaslt::Products>(*library, *this);
  now.products->multiply(a, b, bias, c);
  return true;
}

void RuntimeDevice::begin_capture() {
  Lane& lane = *ready().lane;
  capture_failure_ = nullptr;
  // Relaxed: another thread's work on this device is no reason to give up.
  lane.require(cudaStreamBeginCapture(lane.stream(), cudaStreamCaptureModeRelaxed), "capturing a graph");
  lane.set_capturing(true);
}

std::shared_ptr<Graph> RuntimeDevice::end_capture() {
  Ready& now = ready();
  Lane& lane = *now.lane;
  cudaGraph_t noted = nullptr;
  const cudaError_t ended = lane.capturing() ? cudaStreamEndCapture(lane.stream(), &noted) : cudaSuccess;
  const bool began = lane.capturing();
  lane.set_capturing(false);
  std::vector<std::shared_ptr<std::byte>> blocks = now.pool->end_capture();
  if (const auto failure = std::exchange(capture_failure_, nullptr)) {
    if (noted != nullptr) (void)cudaGraphDestroy(noted);
    (void)cudaGetLastError();
    told(failure);
    throw Error(*failure);
  }
  if (!began) fail(ErrorCode::cuda, id(), ": the capture of a graph did not begin");
  lane.require(ended, "capturing a graph");
  return std::make_shared<RuntimeGraph>(now.lane, noted, std::move(blocks));
}

void RuntimeDevice::skip(const std::shared_ptr<const Error>& failure) {
  const std::lock_guard lock(mutex_);
  if (ready_ && ready_->lane->capturing() && !capture_failure_) capture_failure_ = failure;
}

std::shared_ptr<const Error> RuntimeDevice::end(std::shared_ptr<const Error> thrown) {
  const std::lock_guard lock(mutex_);
  if (!ready_) return thrown;  // it could not be made ready
  ready_->lane->end();
  if (!thrown) return nullptr;
  if (ready_->lane->capturing() && !capture_failure_) capture_failure_ = thrown;
  const std::shared_ptr<const Error> cause = ready_->lane->broken();
  return cause ? cause : thrown;
}

}  // namespace quantaria::cuda
