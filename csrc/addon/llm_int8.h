#pragma once

#include <napi.h>

namespace quantaria::addon {

/// A threshold of outliers. Beyond float32 only infinity is large; below it, every value but 0.
float to_threshold(Napi::Value value);

/// The activation side of LLM.int8.
void define_llm_int8(Napi::Env env, Napi::Object exports);

}  // namespace quantaria::addon
