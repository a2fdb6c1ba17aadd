#include "addon/arguments.h"

#include <cmath>

namespace quantaria::addon {

int64_t to_integer(Napi::Value value, const char* name, int64_t min, int64_t max) {
  if (!value.IsNumber()) fail(ErrorCode::argument, name, ": a number expected");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!(std::floor(number) == number) || number < static_cast<double>(min) ||
      number > static_cast<double>(max))
    fail(ErrorCode::argument, name, ": ", number, ", an integer from ", min, " to ", max, " expected");
  return static_cast<int64_t>(number);
}

double to_number(Napi::Value value, const char* name) {
  if (!value.IsNumber()) fail(ErrorCode::argument, name, ": a number expected");
  const double number = value.As<Napi::Number>().DoubleValue();
  if (!std::isfinite(number)) fail(ErrorCode::argument, name, ": ", number, ", a finite number expected");
  return number;
}

bool to_bool(Napi::Value value, const char* name) {
  if (!value.IsBoolean()) fail(ErrorCode::argument, name, ": a boolean expected");
  return value.As<Napi::Boolean>().Value();
}

std::string to_text(Napi::Value value, const char* name) {
  if (!value.IsString()) fail(ErrorCode::argument, name, ": a string expected");
  return value.As<Napi::String>().Utf8Value();
}

std::string to_path(Napi::Value value, const char* name) {
  std::string path = to_text(value, name);
  if (path.find('\0') != std::string::npos)
    fail(ErrorCode::argument, name, ": a path holds no NUL character");
  return path;
}

Shape to_shape(Napi::Value value, const char* name) {
  if (!value.IsArray()) fail(ErrorCode::argument, name, ": an array of dimensions expected");
  const auto array = value.As<Napi::Array>();
  constexpr uint32_t kMaxRank = 16;
  if (array.Length() > kMaxRank)
    fail(ErrorCode::argument, name, ": ", array.Length(), " dimensions, at most ", kMaxRank, " expected");
  Shape shape;
  for (uint32_t i = 0; i < array.Length(); ++i) shape.push_back(to_integer(array.Get(i), name));
  element_count(shape);  // refuses what would overflow
  return shape;
}

DType to_dtype(Napi::Value value, const char* name) {
  const std::string text = to_text(value, name);
  const auto dtype = dtype_from_name(text);
  if (!dtype) fail(ErrorCode::dtype, name, ": unknown dtype '", text, "'");
  return *dtype;
}

Bytes to_bytes(Napi::Value value, const char* name) {
  if (value.IsArrayBuffer()) {
    auto buffer = value.As<Napi::ArrayBuffer>();
    return {static_cast<std::byte*>(buffer.Data()), static_cast<int64_t>(buffer.ByteLength())};
  }
  if (!value.IsTypedArray()) fail(ErrorCode::argument, name, ": a typed array expected");
  // Not by way of its ArrayBuffer, which may be a shared one.
  napi_typedarray_type type{};
  size_t length = 0;
  void* data = nullptr;
  if (napi_get_typedarray_info(value.Env(), value, &type, &length, &data, nullptr, nullptr) != napi_ok)
    fail(ErrorCode::argument, name, ": a typed array expected");
  return {static_cast<std::byte*>(data), static_cast<int64_t>(value.As<Napi::TypedArray>().ByteLength())};
}

Napi::Value field(Napi::Value object, const char* name) {
  if (!object.IsObject())
    fail(ErrorCode::argument, "options: an object with the field '", name, "' expected");
  return object.As<Napi::Object>().Get(name);
}

Napi::Error to_javascript(Napi::Env env, const Error& error) {
  Napi::Error thrown = Napi::Error::New(env, error.what());
  thrown.Set("code", Napi::String::New(env, code_name(error.code())));
  return thrown;
}

}  // namespace quantaria::addon
