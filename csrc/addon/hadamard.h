#pragma once

#include <napi.h>

namespace quantaria::addon {

void define_hadamard(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
