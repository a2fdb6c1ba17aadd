#include "addon/scheme.h"

namespace quantaria::addon {
namespace {

bool flag(Napi::Value scheme, const char* name) {
  const Napi::Value value = field(scheme, name);
  return !value.IsUndefined() && to_bool(value, name);
}

std::string text_or(Napi::Value scheme, const char* name, const char* otherwise) {
  const Napi::Value value = field(scheme, name);
  return value.IsUndefined() ? otherwise : to_text(value, name);
}

DType scale_dtype_of(Napi::Value scheme) {
  const Napi::Value value = field(scheme, "scaleDtype");
  return value.IsUndefined() ? DType::float32 : to_dtype(value, "scaleDtype");
}

}  // namespace

ops::IntScheme to_int_scheme(Napi::Value scheme) {
  ops::IntScheme s;
  s.bits = static_cast<int>(to_integer(field(scheme, "bits"), "bits", 2, 16));
  if (s.bits > 8 && s.bits != 16) fail(ErrorCode::argument, "bits: ", s.bits, ", 2 to 8 or 16 expected");
  s.symmetric = to_bool(field(scheme, "symmetric"), "symmetric");
  s.full_range = text_or(scheme, "range", "restricted") == "full";
  s.mse_search = text_or(scheme, "search", "minmax") == "mse";
  s.granularity = choice<ops::Granularity>(field(scheme, "granularity"), "granularity",
                                           {{"tensor", ops::Granularity::tensor},
                                            {"row", ops::Granularity::row},
                                            {"column", ops::Granularity::column},
                                            {"group", ops::Granularity::group}});
  if (s.granularity == ops::Granularity::group)
    s.group_size = to_integer(field(scheme, "groupSize"), "groupSize", 1);
  s.scale_dtype = scale_dtype_of(scheme);
  return s;
}

ops::CodebookScheme to_codebook_scheme(Napi::Value scheme) {
  ops::CodebookScheme s;
  s.book = choice<ops::Codebook>(field(scheme, "kind"), "kind",
                                 {{"nf4", ops::Codebook::nf4},
                                  {"fp4", ops::Codebook::fp4},
                                  {"e3m0", ops::Codebook::e3m0},
                                  {"dynamic8", ops::Codebook::dynamic8}});
  s.block_size = to_integer(field(scheme, "blockSize"), "blockSize", 1);
  s.double_quant = flag(scheme, "doubleQuant");
  return s;
}

ops::Fp8Scheme to_fp8_scheme(Napi::Value scheme) {
  ops::Fp8Scheme s;
  s.format = choice<ops::Float8>(field(scheme, "format"), "format",
                                 {{"e4m3", ops::Float8::e4m3}, {"e5m2", ops::Float8::e5m2}});
  s.per_row = choice<bool>(field(scheme, "granularity"), "granularity", {{"row", true}, {"tensor", false}});
  s.scale_dtype = scale_dtype_of(scheme);
  return s;
}

ops::MxScheme to_mx_scheme(Napi::Value scheme) {
  ops::MxScheme s;
  s.element = choice<ops::MxElement>(field(scheme, "element"), "element",
                                     {{"e4m3", ops::MxElement::e4m3},
                                      {"e5m2", ops::MxElement::e5m2},
                                      {"e3m2", ops::MxElement::e3m2},
                                      {"e2m3", ops::MxElement::e2m3},
                                      {"e2m1", ops::MxElement::e2m1},
                                      {"int8", ops::MxElement::int8}});
  const Napi::Value rounding = field(scheme, "rounding");
  if (!rounding.IsUndefined())
    s.rounding = choice<ops::MxRounding>(rounding, "rounding",
                                         {{"even", ops::MxRounding::even},
                                          {"nearest", ops::MxRounding::nearest},
                                          {"floor", ops::MxRounding::floor}});
  s.pre_scale = flag(scheme, "preScale");
  return s;
}

}  // namespace quantaria::addon
