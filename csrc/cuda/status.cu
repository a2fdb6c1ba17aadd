#include <cuda_runtime_api.h>

#include "cuda/status.h"

namespace quantaria::cuda {
namespace {

constexpr int kMinimumMajor = 8;  // sm_80: asynchronous copies, bfloat16 tensor cores

/// 13000 to "13.0"
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Why the first device cannot be used, or nothing.
std::string refusal_of_devices(int count) {
  std::string refused;
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    const cudaError_t error = cudaGetDeviceProperties(&properties, i);
    if (error != cudaSuccess) return cudaGetErrorString(error);
    if (properties.major >= kMinimumMajor) return {};
    refused = std::string(properties.name) + " has compute capability " + std::to_string(properties.major) +
              "." + std::to_string(properties.minor) + ", 8.0 or higher is needed";
  }
  return refused;
}

std::string refusal(int driver, int runtime) {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error == cudaErrorInsufficientDriver && driver == 0) return "no NVIDIA driver is installed";
  if (error == cudaErrorInsufficientDriver)
    return "the driver supports CUDA " + version_text(driver) + ", this build needs " +
           version_text(runtime) + " (for CUDA 13, driver 580 or newer)";
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    return "the driver sees no CUDA device (is CUDA_VISIBLE_DEVICES set?)";
  if (error != cudaSuccess) return cudaGetErrorString(error);
  const std::string refused = refusal_of_devices(count);
  return refused.empty() ? "this version of quantaria has no CUDA kernels yet: the CPU backend does the work"
                         : refused;
}

}  // namespace

Status status() {
  int driver = 0;
  int runtime = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  Status result;
  result.reason = refusal(driver, runtime);
  result.available = result.reason.empty();
  if (driver > 0) result.driver = version_text(driver);
  if (runtime > 0) result.runtime = version_text(runtime);
  return result;
}

}  // namespace quantaria::cuda
