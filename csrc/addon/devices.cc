#include "addon/devices.h"

#include <string>

#include "addon/arguments.h"
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
}

}  // namespace quantaria::addon
