#pragma once

#include <napi.h>

namespace quantaria::addon {

/// Measuring how far one tensor is from another.
void define_compare(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
