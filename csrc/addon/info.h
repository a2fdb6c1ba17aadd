#pragma once

#include <napi.h>

namespace quantaria::addon {

/// What this build and this machine are, and the few settings there are.
void define_info(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
