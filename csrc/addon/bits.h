#pragma once

#include <napi.h>

namespace quantaria::addon {

/// Bit rows, nibbles and planes: what on-disk formats are made of.
void define_bits(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
