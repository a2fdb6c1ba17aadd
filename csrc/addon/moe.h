#pragma once

#include <napi.h>

namespace quantaria::addon {

/// Routing tokens to experts.
void define_moe(Napi::Env env, Napi::Object exports);

/// The products of expert layers.
void define_experts(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
