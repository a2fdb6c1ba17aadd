#pragma once

#include <napi.h>

#include <cstdint>
#include <limits>
#include <optional>
#include <string>

#include "core/dtype.h"
#include "core/error.h"
#include "core/shape.h"

/// JavaScript values to C++ ones. Each throws ERR_ARGUMENT, naming the argument, on anything unexpected:
/// the TypeScript side has checked already, but nothing that it passes on may crash the process.
namespace quantaria::addon {

inline constexpr int64_t kMaxSafeInteger = (int64_t{1} << 53) - 1;

int64_t to_integer(Napi::Value value, const char* name, int64_t min = 0, int64_t max = kMaxSafeInteger);
/// A finite number.
double to_number(Napi::Value value, const char* name);
bool to_bool(Napi::Value value, const char* name);
std::string to_text(Napi::Value value, const char* name);
/// A text that the system takes whole: without NUL.
std::string to_path(Napi::Value value, const char* name);
Shape to_shape(Napi::Value value, const char* name);
DType to_dtype(Napi::Value value, const char* name);

/// The bytes of a typed array or ArrayBuffer; none for a detached one. Valid until JavaScript runs again.
struct Bytes {
  std::byte* data;
  int64_t size;
};
Bytes to_bytes(Napi::Value value, const char* name);

/// A field of an options object.
Napi::Value field(Napi::Value object, const char* name);

/// Makes the library's error a JavaScript one with the same code.
Napi::Error to_javascript(Napi::Env env, const Error& error);

/// Wraps a function so that the library's errors and the standard ones become JavaScript exceptions.
template <Napi::Value (*Function)(const Napi::CallbackInfo&)>
Napi::Value guarded(const Napi::CallbackInfo& info) {
  try {
    return Function(info);
  } catch (const Error& error) {
    throw to_javascript(info.Env(), error);
  } catch (const Napi::Error&) {
    throw;
  } catch (const std::bad_alloc&) {
    throw to_javascript(info.Env(), Error(ErrorCode::out_of_memory, "out of memory"));
  } catch (const std::exception& error) {
    throw to_javascript(info.Env(), Error(ErrorCode::unsupported, error.what()));
  }
}

}  // namespace quantaria::addon
