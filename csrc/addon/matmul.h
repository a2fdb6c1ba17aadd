#pragma once

#include <napi.h>

namespace quantaria::addon {

/// Products with dense and quantized right factors.
void define_matmul(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
