// The device that drives GPUs, over the runtime that the host plays: simt/runtime.
#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "check.h"
#include "core/attempt.h"
#include "cpu/device.h"
#include "cuda/arrivals.h"
#include "cuda/runtime/device.h"
#include "device_queue.h"
#include "simt/runtime/controls.h"
#include "simt/simt.h"

namespace {

using namespace quantaria;
using cuda::RuntimeDevice;
using simt::runtime::Gpu;
using simt::runtime::Machine;
using test::contains;
using test::message_of;
using test::on_queue;

constexpr int64_t kChunk = 64;  // small, so that a few bytes are many chunks

/// The machine's GPUs as devices, with chunks of kChunk bytes.
std::vector<std::unique_ptr<RuntimeDevice>> devices_of(Machine machine = {}) {
  static const cuda::Kernels kernels{};
  simt::runtime::become(std::move(machine));
  std::vector<std::unique_ptr<RuntimeDevice>> all;
  for (cuda::DeviceFacts& facts : cuda::discover("80-real").usable)
    all.push_back(std::make_unique<RuntimeDevice>(std::move(facts), kernels, kChunk));
  return all;
}

std::unique_ptr<RuntimeDevice> device_of(Machine machine = {}) {
  return std::move(devices_of(std::move(machine)).at(0));
}

Tensor bytes_on(Device& device, const std::vector<uint8_t>& values) {
  const Tensor tensor = empty(device, DType::uint8, {static_cast<int64_t>(values.size())});
  device.enqueue({}, {tensor}, [&device, tensor, values] {
    device.copy_in(reinterpret_cast<const std::byte*>(values.data()), tensor.data(), tensor.bytes());
  });
  return tensor;
}

struct Reading {
  std::vector<uint8_t> values;
  std::shared_ptr<const Error> failure;
};

Reading read(const Tensor& tensor) {
  constexpr size_t kBeside = 32;
  std::vector<uint8_t> host(static_cast<size_t>(tensor.bytes()) + kBeside, 0xee);
  Reading result;
  result.failure = on_queue(*tensor.device, [&] {
    if (tensor.storage->failure()) throw Error(*tensor.storage->failure());
    tensor.device->copy_out(tensor.data(), reinterpret_cast<std::byte*>(host.data()), tensor.bytes());
  });
  CHECK(std::all_of(host.end() - kBeside, host.end(), [](uint8_t x) { return x == 0xee; }));
  host.resize(host.size() - kBeside);
  result.values = std::move(host);
  return result;
}

std::vector<uint8_t> counting(int64_t count) {
  std::vector<uint8_t> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<uint8_t>(i * 7 + 3);
  return values;
}

__global__ void scale_and_add(uint8_t* values, int64_t count, uint8_t factor, uint8_t term) {
  for (int64_t i = threadIdx.x; i < count; i += 32)
    values[i] = static_cast<uint8_t>(values[i] * factor + term);
}

/// values = values * factor + term, in place: the result depends on the order.
void multiply_add(Device& device, const Tensor& tensor, uint8_t factor, uint8_t term) {
  device.enqueue({tensor}, {tensor}, [&device, tensor, factor, term] {
    simt::launch(scale_and_add, dim3(1), dim3(32), 0, static_cast<RuntimeDevice&>(device).stream(),
                 tensor.data_as<uint8_t>(), tensor.elements(), factor, term);
  });
}

__global__ void read_beside(uint8_t* values, int64_t count) {
  if (threadIdx.x == 0) simt::store(values, simt::load(values + count + 100));
}

void read_out_of_bounds(Device& device, const Tensor& tensor) {
  device.enqueue({tensor}, {tensor}, [&device, tensor] {
    simt::launch(read_beside, dim3(1), dim3(32), 0, static_cast<RuntimeDevice&>(device).stream(),
                 tensor.data_as<uint8_t>(), tensor.elements());
  });
}

TEST("cuda: copies and kernels keep their order, done as late as CUDA may") {
  const auto device = device_of();
  std::vector<uint8_t> values = counting(3 * kChunk + 5);
  const Tensor tensor = bytes_on(*device, values);
  multiply_add(*device, tensor, 3, 1);
  const Tensor copy = bytes_on(*device, counting(kChunk));  // its chunks are the same pinned memory
  multiply_add(*device, tensor, 5, 2);
  const Reading late = read(tensor);
  for (uint8_t& value : values) value = static_cast<uint8_t>((value * 3 + 1) * 5 + 2);
  CHECK_EQ(late.values, values);
  CHECK_EQ(read(copy).values, counting(kChunk));
}

TEST("cuda: copies of every length around whole chunks give the bytes back and touch no others") {
  const auto device = device_of();
  for (const int64_t bytes : {int64_t{0}, int64_t{1}, kChunk - 1, kChunk, kChunk + 1, 3 * kChunk - 1,
                              3 * kChunk, 3 * kChunk + 1, 11 * kChunk + 17}) {
    const Tensor tensor = bytes_on(*device, counting(bytes));
    const Reading back = read(tensor);
    CHECK(back.failure == nullptr);
    CHECK_EQ(back.values, counting(bytes));
  }
}

TEST("cuda: a copy to the device waits only where all its chunks are in use") {
  const auto device = device_of();
  const Tensor fits = bytes_on(*device, counting(3 * kChunk));
  CHECK(on_queue(*device, [] {}) == nullptr);
  // Three copies, the event after each, and the operation's number: nothing was waited for.
  CHECK_EQ(simt::runtime::waiting_work(), 7);
  const Tensor longer = bytes_on(*device, counting(4 * kChunk));
  CHECK(on_queue(*device, [] {}) == nullptr);
  // Its fourth chunk waited for its first. The other two, the fourth and its number are yet to come.
  CHECK_EQ(simt::runtime::waiting_work(), 7);
}

TEST("cuda: what is read is on its way in several chunks before the first is waited for") {
  const auto device = device_of();
  const Tensor tensor = bytes_on(*device, counting(5 * kChunk));
  CHECK(on_queue(*device, [&] { device->finish(); }) == nullptr);
  const size_t before = simt::runtime::calls().size();
  CHECK_EQ(read(tensor).values, counting(5 * kChunk));
  const std::vector<std::string> calls = simt::runtime::calls();
  const auto start = calls.begin() + static_cast<std::ptrdiff_t>(before);
  const auto first_wait = std::find(start, calls.end(), "cudaEventSynchronize");
  CHECK_EQ(std::count(start, first_wait, "cudaMemcpyAsync"), 3);
  CHECK_EQ(std::count(start, calls.end(), "cudaMemcpyAsync"), 5);
}

TEST("cuda: fresh memory is no zeros, zero() makes it so") {
  const auto device = device_of();
  const Tensor tensor = empty(*device, DType::uint8, {kChunk + 3});
  CHECK_EQ(read(tensor).values, std::vector<uint8_t>(kChunk + 3, 0xff));
  device->enqueue({}, {tensor}, [&] { device->zero(tensor.data(), tensor.bytes()); });
  CHECK_EQ(read(tensor).values, std::vector<uint8_t>(kChunk + 3, 0));
}

TEST(
    "cuda: memory that is not there is refused by its size, and freed memory is there again without a wait") {
  constexpr int64_t kCounters = cuda::kArrivalCounters * int64_t{sizeof(unsigned)};  // the device's own
  const auto device = device_of({.gpus = {Gpu{.memory_bytes = 1000 + kCounters}}});
  auto first = std::make_unique<Tensor>(empty(*device, DType::uint8, {700}));
  CHECK_EQ(device->memory().live_bytes, 700);
  CHECK_EQ(device->memory().live_blocks, 1);
  const std::string refused =
      message_of(failure_of([&] { (void)device->allocate(400); }), ErrorCode::out_of_memory);
  CHECK(contains(refused, "cannot allocate 400 bytes on cuda:0: 300 of " + std::to_string(1000 + kCounters) +
                              " are free; 1 tensors hold 700"));
  CHECK_EQ(device->memory().live_blocks, 1);
  multiply_add(*device, *first, 3, 1);
  CHECK(on_queue(*device, [] {}) == nullptr);
  first.reset();  // given to the stream, which has not come to it
  CHECK(simt::runtime::waiting_work() > 0);
  const Tensor second = empty(*device, DType::uint8, {900});
  CHECK_EQ(second.storage->bytes(), 900);
  CHECK_EQ(device->memory().live_bytes, 900);
}

TEST("cuda: memory that operations in the queue hold is waited for") {
  constexpr int64_t kCounters = cuda::kArrivalCounters * int64_t{sizeof(unsigned)};
  const auto device = device_of({.gpus = {Gpu{.memory_bytes = 1000 + kCounters}}});
  std::promise<void> go_on;
  device->post([&] { go_on.get_future().wait(); });
  multiply_add(*device, empty(*device, DType::uint8, {700}), 3, 1);
  std::thread later([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    go_on.set_value();
  });
  Tensor second;
  const auto failure = failure_of([&] { second = empty(*device, DType::uint8, {900}); });
  later.join();
  CHECK(failure == nullptr);
  CHECK_EQ(device->memory().live_bytes, 900);
  const std::string refused = message_of(on_queue(*device, [&] { (void)device->allocate(400); }),
                                         ErrorCode::out_of_memory);  // by the queue itself
  CHECK(contains(refused, "cannot allocate 400 bytes"));
}

TEST("cuda: pinned memory that is not there fails the copy, not the device") {
  const auto device = device_of();
  const Tensor before = empty(*device, DType::uint8, {1});  // the device is ready
  simt::runtime::fail_call("cudaHostAlloc", cudaErrorMemoryAllocation);
  const Tensor tensor = bytes_on(*device, counting(5));
  CHECK(contains(message_of(read(tensor).failure, ErrorCode::out_of_memory), "pinning host memory"));
  CHECK_EQ(read(bytes_on(*device, counting(5))).values, counting(5));
}

TEST("cuda: an error belongs to the operation whose work it was, however late it is seen") {
  for (const int skipped : {0, 1, 2}) {
    const auto device = device_of();
    const Tensor tensor = bytes_on(*device, counting(8));
    CHECK(on_queue(*device, [&] { device->finish(); }) == nullptr);
    // Each operation is two pieces of work: its kernel, and the number that it has been done.
    simt::runtime::fail_work(0, cudaErrorIllegalAddress, 2 * skipped);
    for (int i = 0; i < 3; ++i) {
      if (i == skipped)
        device->enqueue({tensor}, {tensor}, [&] {
          simt::launch(scale_and_add, dim3(1), dim3(32), 0, device->stream(), tensor.data_as<uint8_t>(),
                       tensor.elements(), uint8_t{1}, uint8_t{0});
        });
      else
        multiply_add(*device, tensor, 1, 0);
    }
    const std::string message = message_of(read(tensor).failure, ErrorCode::cuda);
    CHECK(contains(message, "cuda:0 broke in `"));
    CHECK(!contains(message, "multiply_add"));
    CHECK(contains(message, "(cuda_device_test.cc:"));
    CHECK(contains(message, "an illegal memory access was encountered (cudaErrorIllegalAddress)"));
  }
}

TEST("cuda: a device that cannot say how far it has come tells the last operation, as that") {
  for (const char* call : {"cuStreamWriteValue32", "cudaGetDriverEntryPointByVersion"}) {
    const auto device = device_of();
    simt::runtime::fail_call(call, cudaErrorSymbolNotFound);
    const Tensor tensor = bytes_on(*device, counting(8));
    multiply_add(*device, tensor, 1, 0);
    CHECK_EQ(read(tensor).values, counting(8));
    read_out_of_bounds(*device, tensor);
    multiply_add(*device, tensor, 1, 0);
    CHECK(contains(message_of(read(tensor).failure, ErrorCode::cuda),
                   "cuda:0 broke in or before `multiply_add`"));
  }
}

TEST(
    "cuda: after that every operation, read, wait and allocation fails with the same cause; other devices go "
    "on") {
  const auto devices = devices_of({.gpus = {Gpu{}, Gpu{}}});
  const Tensor broken = bytes_on(*devices[0], counting(8));
  const Tensor sound = bytes_on(*devices[1], counting(8));
  read_out_of_bounds(*devices[0], broken);
  multiply_add(*devices[0], broken, 2, 0);
  const std::string cause = message_of(read(broken).failure, ErrorCode::cuda);
  CHECK(contains(cause, "cuda:0 broke in `read_out_of_bounds`"));
  CHECK(contains(cause, "load outside of global memory"));
  CHECK(contains(cause, "cuda_device_test.cc:"));
  multiply_add(*devices[0], broken, 2, 0);
  CHECK_EQ(message_of(read(broken).failure, ErrorCode::cuda), cause);
  CHECK_EQ(message_of(on_queue(*devices[0], [&] { devices[0]->finish(); }), ErrorCode::cuda), cause);
  CHECK_EQ(message_of(failure_of([&] { (void)devices[0]->allocate(8); }), ErrorCode::cuda), cause);
  const Tensor untouched = bytes_on(cpu::device(), counting(1));
  devices[0]->enqueue({}, {untouched}, [] {});  // does nothing, and yet cannot
  (void)on_queue(*devices[0], [] {});
  CHECK(untouched.storage->failure() != nullptr);
  multiply_add(*devices[1], sound, 1, 1);
  CHECK_EQ(read(sound).values[0], counting(1)[0] + 1);
  CHECK(contains(message_of(read(transferred(broken, *devices[1])).failure, ErrorCode::cuda), cause));
}

TEST("cuda: a launch that is refused fails its operation alone") {
  const auto device = device_of();
  const Tensor first = bytes_on(*device, counting(8));
  const Tensor second = bytes_on(*device, counting(8));
  CHECK(on_queue(*device, [] {}) == nullptr);
  simt::runtime::fail_call("launch", cudaErrorInvalidValue);
  multiply_add(*device, first, 2, 1);
  multiply_add(*device, second, 1, 0);
  CHECK(contains(message_of(read(first).failure, ErrorCode::cuda), "kernel launch: invalid argument"));
  CHECK_EQ(read(second).values, counting(8));
}

TEST("cuda: a device that cannot be made ready says so to each who asks, until it can") {
  const auto device = device_of();
  simt::runtime::fail_call("cudaStreamCreateWithFlags", cudaErrorMemoryAllocation);
  simt::runtime::fail_call("cudaMemPoolCreate", cudaErrorInvalidValue);
  CHECK(contains(message_of(failure_of([&] { (void)device->allocate(8); }), ErrorCode::out_of_memory),
                 "cuda:0 cannot be used: out of memory"));
  CHECK(contains(message_of(on_queue(*device, [&] { device->finish(); }), ErrorCode::cuda), "memory pool"));
  CHECK_EQ(read(bytes_on(*device, counting(5))).values, counting(5));
}

TEST("cuda: tensors go from device to device and to the host and back") {
  const auto devices = devices_of({.gpus = {Gpu{}, Gpu{}}});
  const std::vector<uint8_t> values = counting(5 * kChunk + 1);
  const Tensor there = transferred(bytes_on(*devices[0], values), *devices[1]);
  multiply_add(*devices[1], there, 1, 1);
  const Tensor back = transferred(transferred(there, cpu::device()), *devices[0]);
  const Reading reading = read(back);
  for (size_t i = 0; i < values.size(); ++i) CHECK_EQ(int{reading.values[i]}, (values[i] + 1) % 256);
  CHECK_EQ(devices[1]->memory().live_blocks, 1);
}

TEST("cuda: a device that ends does what is queued first, and its memory may outlive it") {
  auto device = device_of();
  std::vector<uint8_t> host(8, 0);
  Tensor tensor = bytes_on(*device, counting(8));
  for (int i = 0; i < 20; ++i) multiply_add(*device, tensor, 1, 1);
  device->post([&device = *device, tensor, &host] {
    device.copy_out(tensor.data(), reinterpret_cast<std::byte*>(host.data()), 8);
  });
  device.reset();
  CHECK_EQ(int{host[0]}, counting(1)[0] + 20);
  tensor = {};
  CHECK_EQ(simt::runtime::live_blocks(), 0);
}

TEST("cuda: a broken device ends as well, and gives its memory back") {
  auto device = device_of();
  Tensor tensor = bytes_on(*device, counting(8));
  read_out_of_bounds(*device, tensor);
  CHECK(read(tensor).failure != nullptr);
  multiply_add(*device, tensor, 1, 1);
  device.reset();
  tensor = {};
  CHECK_EQ(simt::runtime::live_blocks(), 0);
}

TEST("cuda: threads may allocate and free while the queue works") {
  const auto device = device_of();
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&device = *device, t] {
      for (int i = 0; i < 20; ++i) {
        const Tensor tensor = bytes_on(device, counting(kChunk + t));
        multiply_add(device, tensor, 1, static_cast<uint8_t>(t));
        if (i % 5 == 0) CHECK_EQ(int{read(tensor).values[0]}, counting(1)[0] + t);
      }
    });
  for (std::thread& thread : threads) thread.join();
  CHECK(on_queue(*device, [&] { device->finish(); }) == nullptr);
  CHECK_EQ(device->memory().live_blocks, 0);
}

TEST("cuda: a timer takes the work between its ends and nothing before") {
  const auto device = device_of();
  const Tensor tensor = bytes_on(*device, counting(8));
  CHECK(contains(message_of(on_queue(*device, [&] { (void)device->stop_timer(); }), ErrorCode::argument),
                 "was not started"));
  double seconds = -1;
  CHECK(on_queue(*device, [&] { device->start_timer(); }) == nullptr);
  multiply_add(*device, tensor, 1, 1);
  CHECK(on_queue(*device, [&] { seconds = device->stop_timer(); }) == nullptr);
  CHECK(seconds > 0);
  CHECK_EQ(simt::runtime::waiting_work(), 0);
}

/// What the queue notes down of `work`.
std::shared_ptr<cuda::Graph> captured(RuntimeDevice& device, const std::function<void()>& work) {
  std::shared_ptr<cuda::Graph> graph;
  device.open_capture();
  CHECK(on_queue(device, [&] { device.begin_capture(); }) == nullptr);
  work();
  CHECK(on_queue(device, [&] { graph = device.end_capture(); }) == nullptr);
  return graph;
}

TEST("cuda: a graph does what was noted down at each launch, in order, while threads allocate and free") {
  const auto device = device_of();
  const Tensor tensor = bytes_on(*device, counting(8));
  std::vector<uint8_t> values = counting(8);
  {
    std::atomic<bool> ended = false;
    std::thread beside([&] {
      while (!ended) (void)empty(*device, DType::uint8, {100});
    });
    const std::shared_ptr<cuda::Graph> graph = captured(*device, [&] {
      multiply_add(*device, tensor, 3, 1);
      multiply_add(*device, tensor, 5, 2);
    });
    ended = true;
    beside.join();
    CHECK_EQ(read(tensor).values, values);  // nothing has been done
    for (int i = 0; i < 2; ++i) {
      CHECK(on_queue(*device, [&] { graph->launch(); }) == nullptr);
      for (uint8_t& value : values) value = static_cast<uint8_t>((value * 3 + 1) * 5 + 2);
    }
    CHECK_EQ(read(tensor).values, values);
  }
  CHECK_EQ(device->memory().live_blocks, 1);
}

TEST("cuda: a graph keeps what was allocated meanwhile, and what was freed goes back at its end") {
  const auto device = device_of();
  auto before = std::make_unique<Tensor>(empty(*device, DType::uint8, {10}));
  auto graph = captured(*device, [&] {
    before.reset();
    (void)empty(*device, DType::uint8, {20});
  });
  CHECK_EQ(device->memory().live_bytes, 20);
  graph.reset();
  CHECK_EQ(device->memory().live_bytes, 0);
  device->finish();
  CHECK_EQ(simt::runtime::live_blocks(), 2);  // the pinned word of the lane, and its counters
}

TEST("cuda: a graph that goes while it is under way, or while another one is captured, spoils neither") {
  const auto device = device_of();
  const Tensor tensor = bytes_on(*device, counting(8));
  auto first = captured(*device, [&] { multiply_add(*device, tensor, 3, 1); });
  CHECK(on_queue(*device, [&] { first->launch(); }) == nullptr);
  const auto second = captured(*device, [&] {
    multiply_add(*device, tensor, 5, 2);
    CHECK(on_queue(*device, [&] { first.reset(); }) == nullptr);
  });
  CHECK(on_queue(*device, [&] { second->launch(); }) == nullptr);
  std::vector<uint8_t> values = counting(8);
  for (uint8_t& value : values) value = static_cast<uint8_t>((value * 3 + 1) * 5 + 2);
  CHECK_EQ(read(tensor).values, values);
}

TEST("cuda: a failure while a graph is captured is the graph's, and the device goes on") {
  const auto device = device_of();
  for (const char* const call : {"launch", "cudaStreamEndCapture", "cudaGraphInstantiate"}) {
    const Tensor tensor = bytes_on(*device, counting(8));
    CHECK(on_queue(*device, [] {}) == nullptr);
    device->open_capture();
    CHECK(on_queue(*device, [&] { device->begin_capture(); }) == nullptr);
    simt::runtime::fail_call(call, cudaErrorInvalidValue);
    multiply_add(*device, tensor, 3, 1);
    CHECK(contains(message_of(on_queue(*device, [&] { (void)device->end_capture(); }), ErrorCode::cuda),
                   "invalid argument"));
    // The operation that failed has spoilt its result; of a graph that did not come about nothing was done.
    if (std::strcmp(call, "launch") != 0) CHECK_EQ(read(tensor).values, counting(8));
    const Tensor other = bytes_on(*device, counting(8));
    CHECK_EQ(read(other).values, counting(8));
  }
  const auto graph = captured(*device, [] {});
  CHECK(on_queue(*device, [&] { graph->launch(); }) == nullptr);
}

std::string reason_of(Machine machine, const char* architectures = "80-real,90-real,90-virtual") {
  simt::runtime::become(std::move(machine));
  const cuda::Status status = cuda::discover(architectures).status;
  CHECK_EQ(status.available, status.reason.empty());
  return status.reason;
}

TEST("cuda: each reason for which there is no device is told apart") {
  CHECK_EQ(reason_of({}), "");
  CHECK_EQ(reason_of({.driver = 0}), "no NVIDIA driver is installed");
  CHECK_EQ(reason_of({.driver = 12040}),
           "the driver is too old: it supports CUDA 12.4, this build needs 13.0 (for CUDA 13, driver 580 or "
           "newer)");
  CHECK_EQ(reason_of({.gpus = {}}), "the driver sees no CUDA device (is CUDA_VISIBLE_DEVICES set?)");
  CHECK_EQ(reason_of({.gpus = {Gpu{.name = "Tesla T4", .major = 7, .minor = 5}}}),
           "Tesla T4 has compute capability 7.5, 8.0 or higher is needed");
  CHECK_EQ(reason_of({.gpus = {Gpu{.name = "A100", .major = 8, .minor = 0}}}, "90-real,90-virtual"),
           "A100 has compute capability 8.0, for which this build has no code (it has 90-real,90-virtual)");
  simt::runtime::become({});
  simt::runtime::fail_call("cudaGetDeviceCount", cudaErrorInitializationError);
  CHECK_EQ(cuda::discover("80-real").status.reason,
           "the CUDA driver does not start: initialization error (cudaErrorInitializationError)");
  CHECK_EQ(cudaGetLastError(), cudaSuccess);
}

TEST("cuda: devices keep CUDA's numbers, and one that cannot be used says why while others can") {
  simt::runtime::become({.gpus = {Gpu{.name = "Tesla T4", .major = 7, .minor = 5}, Gpu{.name = "A100"}}});
  const cuda::Discovery found = cuda::discover("80-real");
  CHECK(found.status.available);
  CHECK_EQ(found.usable.size(), size_t{1});
  CHECK_EQ(found.usable[0].id, "cuda:1");
  CHECK_EQ(found.usable[0].ordinal, 1);
  CHECK_EQ(found.status.refused.size(), size_t{1});
  CHECK_EQ(found.status.refused[0].first, "cuda:0");
}

TEST("cuda: one GPU of several is used alone, and a thread keeps the GPU that it works on") {
  const auto devices = devices_of({.gpus = {Gpu{}, Gpu{}}});
  RuntimeDevice& second = *devices.at(1);
  CHECK_EQ(read(bytes_on(second, counting(100))).values, counting(100));
  CHECK(simt::runtime::has_context(1));
  CHECK(!simt::runtime::has_context(0));
  CHECK_EQ(cudaSetDevice(0), cudaSuccess);
  CHECK_EQ(read(bytes_on(second, counting(100))).values, counting(100));
  int current = -1;
  CHECK_EQ(cudaGetDevice(&current), cudaSuccess);
  CHECK_EQ(current, 0);
}

TEST("cuda: machine code serves its major version from its minor on, PTX all that is newer") {
  const char* const shipped = "80-real,90-real,90-virtual";
  CHECK(cuda::has_code_for(8, 0, shipped));
  CHECK(cuda::has_code_for(8, 9, shipped));
  CHECK(cuda::has_code_for(9, 0, shipped));
  CHECK(cuda::has_code_for(12, 1, shipped));
  CHECK(!cuda::has_code_for(9, 0, "80-real"));
  CHECK(!cuda::has_code_for(8, 0, "86-real"));
  CHECK(cuda::has_code_for(10, 0, "80"));
  CHECK(cuda::has_code_for(9, 0, "80-virtual"));
  CHECK(cuda::has_code_for(9, 0, "90a-real"));
  CHECK(!cuda::has_code_for(10, 0, "90a"));
  CHECK(cuda::has_code_for(8, 0, "native"));
  CHECK(!cuda::has_code_for(8, 0, ""));
}

}  // namespace
