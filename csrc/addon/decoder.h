#pragma once

#include <napi.h>

namespace quantaria::addon {

/// What a decoder does between its products.
void define_decoder(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
