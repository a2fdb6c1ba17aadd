#pragma once

#include <napi.h>

namespace quantaria::addon {

/// Quantizing a weight to its stored form and back.
void define_quantize(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
