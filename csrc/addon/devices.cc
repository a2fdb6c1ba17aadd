#include "addon/devices.h"

#include <string>

#include "addon/arguments.h"
#include "addon/environment.h"
#include "core/attempt.h"
#include "cpu/device.h"
#include "cuda/device.h"

namespace quantaria::addon {
namespace {

Napi::Value cuda_devices(const Napi::CallbackInfo& info) {
  Napi::Array list = Napi::Array::New(info.Env());
  for (const cuda::Device* device : cuda::devices()) {
    Napi::Object facts = Napi::Object::New(info.Env());
    facts.Set("id", device->id());
    facts.Set("kind", device->kind());
    facts.Set("name", device->name());
    facts.Set("memoryBytes", static_cast<double>(device->memory_bytes()));
    facts.Set("computeCapability", device->compute_capability());
    list.Set(list.Length(), facts);
  }
  return list;
}

/// memory(device): bytes and blocks that tensors hold, and bytes that are kept for reuse
Napi::Value memory(const Napi::CallbackInfo& info) {
  const MemoryCounters now = to_device(info[0], "device").memory();
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("liveBytes", static_cast<double>(now.live_bytes));
  result.Set("liveBlocks", static_cast<double>(now.live_blocks));
  result.Set("cachedBytes", static_cast<double>(now.cached_bytes));
  return result;
}

/// startTimer(device): a promise that settles when its queue has come to it
Napi::Value start_timer(const Napi::CallbackInfo& info) {
  Device& device = to_device(info[0], "device");
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  device.post([&device, settle = settle] { settle(failure_of([&] { device.start_timer(); }), nullptr); });
  return promise;
}

/// stopTimer(device): a promise of the seconds that the work queued since then took
Napi::Value stop_timer(const Napi::CallbackInfo& info) {
  Device& device = to_device(info[0], "device");
  auto [promise, settle] = Environment::of(info.Env()).promise(info.Env());
  device.post([&device, settle = settle] {
    double seconds = 0;
    const std::shared_ptr<const Error> failure = failure_of([&] { seconds = device.stop_timer(); });
    settle(failure, [seconds](Napi::Env env) { return Napi::Number::New(env, seconds); });
  });
  return promise;
}

}  // namespace

Device& to_device(Napi::Value value, const char* name) {
  const std::string id = to_text(value, name);
  if (id == cpu::device().id()) return cpu::device();
  for (cuda::Device* device : cuda::devices())
    if (id == device->id()) return *device;
  fail(ErrorCode::device, name, ": there is no ", id, " here");
}

int64_t index_of(const Device& device) {
  int64_t index = 0;
  if (&device == &cpu::device()) return index;
  for (const cuda::Device* other : cuda::devices()) {
    ++index;
    if (&device == other) return index;
  }
  fail(ErrorCode::device, device.id(), " is not one of the devices");
}

void define_devices(Napi::Env env, Napi::Object exports) {
  exports.Set("cudaDevices", Napi::Function::New<guarded<cuda_devices>>(env));
  exports.Set("memory", Napi::Function::New<guarded<memory>>(env));
  exports.Set("startTimer", Napi::Function::New<guarded<start_timer>>(env));
  exports.Set("stopTimer", Napi::Function::New<guarded<stop_timer>>(env));
}

}  // namespace quantaria::addon
