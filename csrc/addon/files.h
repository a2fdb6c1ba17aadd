#pragma once

#include <napi.h>

#include "addon/environment.h"

namespace quantaria::addon {

/// Mapped safetensors files to read from, and files that are written at given positions.
void define_files(Napi::Env env, Napi::Object exports, Environment& environment);

}  // namespace quantaria::addon
