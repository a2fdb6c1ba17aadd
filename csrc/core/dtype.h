#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace quantaria {

enum class DType : uint8_t {
  float32,
  float16,
  bfloat16,
  float8_e4m3,
  float8_e5m2,
  int8,
  uint8,
  int16,
  int32,
  int64,
  boolean,
};

struct DTypeFacts {
  DType dtype;
  std::string_view name;  // as in the TypeScript API
  int64_t bytes;
  bool is_float;
};

inline constexpr std::array<DTypeFacts, 11> kDTypes{{
    {DType::float32, "float32", 4, true},
    {DType::float16, "float16", 2, true},
    {DType::bfloat16, "bfloat16", 2, true},
    {DType::float8_e4m3, "float8_e4m3", 1, true},
    {DType::float8_e5m2, "float8_e5m2", 1, true},
    {DType::int8, "int8", 1, false},
    {DType::uint8, "uint8", 1, false},
    {DType::int16, "int16", 2, false},
    {DType::int32, "int32", 4, false},
    {DType::int64, "int64", 8, false},
    {DType::boolean, "bool", 1, false},
}};

constexpr const DTypeFacts& facts(DType dtype) { return kDTypes[static_cast<size_t>(dtype)]; }
constexpr int64_t size_of(DType dtype) { return facts(dtype).bytes; }
constexpr std::string_view name_of(DType dtype) { return facts(dtype).name; }
constexpr bool is_float(DType dtype) { return facts(dtype).is_float; }

constexpr std::optional<DType> dtype_from_name(std::string_view name) {
  for (const DTypeFacts& f : kDTypes)
    if (f.name == name) return f.dtype;
  return std::nullopt;
}

}  // namespace quantaria
