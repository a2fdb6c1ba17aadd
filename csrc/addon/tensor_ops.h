#pragma once

#include <napi.h>

namespace quantaria::addon {

/// Making, copying, casting and reading tensors, and waiting for a device.
void define_tensor_ops(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
