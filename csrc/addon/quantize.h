#pragma once

#include <napi.h>

#include "ops/quantize/quantize.h"

namespace quantaria::addon {

/// A scheme of kind `int`. ERR_ARGUMENT naming the field.
ops::IntScheme to_int_scheme(Napi::Value scheme);

/// Quantizing a weight to its stored form and back.
void define_quantize(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
