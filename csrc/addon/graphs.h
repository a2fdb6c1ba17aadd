#pragma once

#include <napi.h>

namespace quantaria::addon {

void define_graphs(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
