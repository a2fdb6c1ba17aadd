#pragma once

#include <napi.h>

#include <initializer_list>
#include <string>
#include <utility>

#include "addon/arguments.h"
#include "ops/quantize/quantize.h"

/// Quantization schemes as JavaScript describes them.
namespace quantaria::addon {

/// A name of a scheme's field to the value it stands for.
template <class T>
T choice(Napi::Value value, const char* name, std::initializer_list<std::pair<const char*, T>> choices) {
  const std::string text = to_text(value, name);
  for (const auto& [key, chosen] : choices)
    if (text == key) return chosen;
  fail(ErrorCode::argument, name, ": unknown value '", text, "'");
}

ops::IntScheme to_int_scheme(Napi::Value scheme);
ops::CodebookScheme to_codebook_scheme(Napi::Value scheme);
ops::Fp8Scheme to_fp8_scheme(Napi::Value scheme);
ops::MxScheme to_mx_scheme(Napi::Value scheme);

}  // namespace quantaria::addon
