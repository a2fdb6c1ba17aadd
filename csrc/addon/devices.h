#pragma once

#include <napi.h>

#include "core/device.h"

namespace quantaria::addon {

/// The device of an id. ERR_DEVICE if it is not there.
Device& to_device(Napi::Value value, const char* name);

/// 0 is the CPU, then come those of cudaDevices().
int64_t index_of(const Device& device);

/// cudaDevices(): [{id, kind, name, memoryBytes, computeCapability}], memory(device), and the timer of each
/// device.
void define_devices(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
