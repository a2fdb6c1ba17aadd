#include "cuda/cublaslt/library.h"

#include <dlfcn.h>
#include <link.h>

#include <cstdlib>
#include <memory>

#include "core/attempt.h"
#include "core/error.h"

namespace quantaria::cuda::cublaslt {
namespace {

constexpr const char* kVariable = "QUANTARIA_CUBLASLT";
// Later ones may lay things out in another way, earlier ones lack functions.
constexpr size_t kOldestMajor = 12;
constexpr size_t kNewestMajor = 13;

/// The first of the names that can be opened.
void* open(std::string_view setting) {
  if (setting != "1") {
    const std::string path(setting);
    if (void* const opened = dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL)) return opened;
    fail(ErrorCode::native_load, kVariable, ": ", dlerror());
  }
  std::string reasons;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12"}) {
    if (void* const opened = dlopen(name, RTLD_NOW | RTLD_LOCAL)) return opened;
    reasons += (reasons.empty() ? "" : "; ") + std::string(dlerror());
  }
  fail(ErrorCode::native_load, kVariable,
       "=1: no cuBLASLt is found, a path in place of 1 names one: ", reasons);
}

std::string path_of(void* opened) {
  link_map* map = nullptr;
  return dlinfo(opened, RTLD_DI_LINKMAP, &map) == 0 ? map->l_name : "";
}

template <class Function>
void resolve(void* opened, const std::string& path, const char* name, Function*& function) {
  function = reinterpret_cast<Function*>(dlsym(opened, name));
  if (function == nullptr)
    fail(ErrorCode::native_load, kVariable, ": ", path, " is no cuBLASLt that can be used: it has no ", name);
}

/// 130101 to "13.1.1"
std::string version_text(size_t version) {
  return std::to_string(version / 10000) + "." + std::to_string(version / 100 % 100) + "." +
         std::to_string(version % 100);
}

/// Loaded, or why not.
struct Attempt {
  std::unique_ptr<const Library> library;
  std::shared_ptr<const Error> failure;
};

const Attempt& attempt() {
  static const Attempt* const one = [] {
    auto made = std::make_unique<Attempt>();
    const char* const set = std::getenv(kVariable);
    const std::string_view setting = set != nullptr ? set : "";
    if (!setting.empty() && setting != "0")
      made->failure = failure_of([&] { made->library = std::make_unique<const Library>(load(setting)); });
    return made.release();  // a device's queue may be at work while the process ends
  }();
  return *one;
}

}  // namespace

Library load(std::string_view setting) {
  void* const opened = open(setting);
  Library library{{}, path_of(opened), ""};
  Functions& call = library.call;
  const auto take = [&](const char* name, auto& function) { resolve(opened, library.path, name, function); };
  take("cublasLtGetVersion", call.version);
  const size_t version = call.version();
  library.version = version_text(version);
  if (version / 10000 < kOldestMajor || version / 10000 > kNewestMajor)
    fail(ErrorCode::native_load, kVariable, ": ", library.path, " is cuBLASLt ", library.version, ", ",
         kOldestMajor, " or ", kNewestMajor, " is needed");
  take("cublasLtGetStatusName", call.name_of);
  take("cublasLtCreate", call.create);
  take("cublasLtDestroy", call.destroy);
  take("cublasLtMatmulDescCreate", call.create_matmul);
  take("cublasLtMatmulDescDestroy", call.destroy_matmul);
  take("cublasLtMatmulDescSetAttribute", call.set_matmul);
  take("cublasLtMatrixLayoutCreate", call.create_layout);
  take("cublasLtMatrixLayoutDestroy", call.destroy_layout);
  take("cublasLtMatmulPreferenceCreate", call.create_preference);
  take("cublasLtMatmulPreferenceDestroy", call.destroy_preference);
  take("cublasLtMatmulPreferenceSetAttribute", call.set_preference);
  take("cublasLtMatmulAlgoGetHeuristic", call.choose);
  take("cublasLtMatmul", call.multiply);
  return library;
}

const Library* wanted() {
  if (attempt().failure) throw Error(*attempt().failure);
  return attempt().library.get();
}

VendorLibrary report() {
  const Attempt& now = attempt();
  if (now.failure) return {false, now.failure->what(), "", ""};
  if (!now.library) return {false, std::string(kVariable) + " does not ask for it", "", ""};
  return {true, "", now.library->version, now.library->path};
}

}  // namespace quantaria::cuda::cublaslt
