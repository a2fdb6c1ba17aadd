#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace quantaria::cuda {

/// "an illegal memory access was encountered (cudaErrorIllegalAddress)"
inline std::string text_of(cudaError_t error) {
  return std::string(cudaGetErrorString(error)) + " (" + cudaGetErrorName(error) + ")";
}

/// Makes a device the calling thread's for a while: the JavaScript thread also belongs to others who use
/// CUDA.
class DeviceScope {
 public:
  explicit DeviceScope(int ordinal) : ordinal_(ordinal) {
    if (cudaGetDevice(&before_) != cudaSuccess) before_ = ordinal_;
    if (before_ != ordinal_) (void)cudaSetDevice(ordinal_);
  }
  ~DeviceScope() {
    if (before_ != ordinal_) (void)cudaSetDevice(before_);
  }
  DeviceScope(const DeviceScope&) = delete;
  DeviceScope& operator=(const DeviceScope&) = delete;

 private:
  int ordinal_;
  int before_ = 0;
};

}  // namespace quantaria::cuda
