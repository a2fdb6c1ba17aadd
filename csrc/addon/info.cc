#include "addon/info.h"

#include <string>

#include "addon/arguments.h"
#include "core/allocator.h"
#include "core/build_id.h"
#include "cpu/device.h"
#include "cpu/isa.h"
#include "cuda/status.h"

namespace quantaria::addon {
namespace {

Napi::Value build_id_text(const Napi::CallbackInfo& info) {
  return Napi::String::New(info.Env(), build_id());
}

/// cpuInfo(): {threads, isa, memoryBytes}
Napi::Value cpu_info(const Napi::CallbackInfo& info) {
  Napi::Object result = Napi::Object::New(info.Env());
  result.Set("threads", cpu::device().threads());
  result.Set("isa", std::string(name_of(selected_isa())));
  result.Set("memoryBytes", static_cast<double>(physical_memory()));
  return result;
}

Napi::Value set_threads(const Napi::CallbackInfo& info) {
  cpu::device().set_threads(static_cast<int>(to_integer(info[0], "threads", 1, 1024)));
  return info.Env().Undefined();
}

/// selectIsa(name): for tests that compare instruction sets
Napi::Value select_isa_by_name(const Napi::CallbackInfo& info) {
  const std::string name = to_text(info[0], "isa");
  for (const Isa isa : kIsas) {
    if (name != name_of(isa)) continue;
    select_isa(isa);
    return info.Env().Undefined();
  }
  fail(ErrorCode::argument, "isa: '", name, "', scalar, avx2, avx512, avx512vnni or avx512bf16 expected");
}

/// cudaStatus(): {available, reason, driver, runtime, refused: {id: reason}, cublasLt: {used, reason,
/// version, path}}
Napi::Value cuda_status(const Napi::CallbackInfo& info) {
  const cuda::Status status = cuda::status();
  const Napi::Env env = info.Env();
  const auto text_or_null = [&](const std::string& text) -> Napi::Value {
    return text.empty() ? env.Null() : Napi::Value(Napi::String::New(env, text));
  };
  Napi::Object result = Napi::Object::New(env);
  result.Set("available", status.available);
  result.Set("reason", text_or_null(status.reason));
  if (!status.driver.empty()) result.Set("driver", status.driver);
  result.Set("runtime", text_or_null(status.runtime));
  if (!status.refused.empty()) {
    Napi::Object refused = Napi::Object::New(env);
    for (const auto& [id, reason] : status.refused) refused.Set(id, reason);
    result.Set("refused", refused);
  }
  Napi::Object library = Napi::Object::New(env);
  library.Set("used", status.cublaslt.used);
  library.Set("reason", text_or_null(status.cublaslt.reason));
  if (!status.cublaslt.version.empty()) library.Set("version", status.cublaslt.version);
  if (!status.cublaslt.path.empty()) library.Set("path", status.cublaslt.path);
  result.Set("cublasLt", library);
  return result;
}

}  // namespace

void define_info(Napi::Env env, Napi::Object exports) {
  exports.Set("buildId", Napi::Function::New<guarded<build_id_text>>(env));
  exports.Set("cpuInfo", Napi::Function::New<guarded<cpu_info>>(env));
  exports.Set("setThreads", Napi::Function::New<guarded<set_threads>>(env));
  exports.Set("selectIsa", Napi::Function::New<guarded<select_isa_by_name>>(env));
  exports.Set("cudaStatus", Napi::Function::New<guarded<cuda_status>>(env));
}

}  // namespace quantaria::addon
