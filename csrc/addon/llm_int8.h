#pragma once

#include <napi.h>

namespace quantaria::addon {

/// The activation side of LLM.int8.
void define_llm_int8(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
