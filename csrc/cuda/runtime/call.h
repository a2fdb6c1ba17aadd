#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace quantaria::cuda {

/// "an illegal memory access was encountered (cudaErrorIllegalAddress)"
inline std::string text_of(cudaError_t error) {
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

/// Whether a device has a context in this process. By the driver's function, as the runtime has none like it;
/// of a device that is not the calling thread's.
inline bool has_context(int ordinal) {
  using GetState = int (*)(int ordinal, unsigned* flags, int* active);
  static const auto get_state = [] {
    constexpr unsigned kSince = 12000;
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void* function = nullptr;
    if (cudaGetDriverEntryPointByVersion("cuDevicePrimaryCtxGetState", &function, kSince, cudaEnableDefault,
                                         &found) != cudaSuccess)
      (void)cudaGetLastError();
    return reinterpret_cast<GetState>(function);
  }();
  unsigned flags = 0;
  int active = 0;
  return get_state == nullptr || get_state(ordinal, &flags, &active) != 0 || active != 0;
}

/// Makes a device the calling thread's for a while: the JavaScript thread also belongs to others who use
/// CUDA. It gets back the one before, unless that has no context: cudaSetDevice would make one, which takes
/// half a gigabyte of a GPU that nobody asked for.
class DeviceScope {
 public:
  explicit DeviceScope(int ordinal) : ordinal_(ordinal) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = ordinal_;
    if (before_ != ordinal_) (void)cudaSetDevice(ordinal_);
  }
  ~DeviceScope() {
    if (before_ != ordinal_ && has_context(before_)) (void)cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int ordinal_;
  int before_ = 0;
};

}  // namespace quantaria::cuda
