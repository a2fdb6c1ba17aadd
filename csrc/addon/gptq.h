#pragma once

#include <napi.h>

namespace quantaria::addon {

/// Sums of outer products of calibration states, and quantization by them.
void define_gptq(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
