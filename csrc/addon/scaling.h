#pragma once

#include <napi.h>

namespace quantaria::addon {

/// Factors of features and clipping of groups (csrc/ops/scaling).
void define_scaling(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
