#include "cuda/runtime/discovery.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <charconv>

#include "cuda/runtime/call.h"

namespace quantaria::cuda {
namespace {

constexpr int kMinimumMajor = 8;  // sm_80: asynchronous copies, bfloat16 tensor cores

/// 13000 to "13.0"
std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Why none of the devices can be asked for, or nothing.
std::string refusal_of_machine(cudaError_t error, int count, int driver, int runtime) {
  if (error == cudaErrorInsufficientDriver && driver == 0) return "no NVIDIA driver is installed";
  if (error == cudaErrorInsufficientDriver)
    return "the driver is too old: it supports CUDA " + version_text(driver) + ", this build needs " +
           version_text(runtime) + " (for CUDA 13, driver 580 or newer)";
  if (error == cudaErrorNoDevice || (error == cudaSuccess && count == 0))
    return "the driver sees no CUDA device (is CUDA_VISIBLE_DEVICES set?)";
  return error == cudaSuccess ? "" : "the CUDA driver does not start: " + text_of(error);
}

std::string refusal_of(const DeviceFacts& device, int major, int minor, std::string_view architectures) {
  if (major < kMinimumMajor)
    return device.name + " has compute capability " + device.compute_capability + ", 8.0 or higher is needed";
  if (!has_code_for(major, minor, architectures))
    return device.name + " has compute capability " + device.compute_capability +
           ", for which this build has no code (it has " + std::string(architectures) + ")";
  return {};
}

}  // namespace

bool has_code_for(int major, int minor, std::string_view architectures) {
  while (!architectures.empty()) {
    const size_t end = std::min(architectures.find(','), architectures.size());
    const std::string_view one = architectures.substr(0, end);
    architectures.remove_prefix(std::min(end + 1, architectures.size()));
    int number = 0;
    const auto [rest, error] = std::from_chars(one.data(), one.data() + one.size(), number);
    if (error != std::errc{}) return true;  // "native", "all": whoever built it knows for which machine
    const std::string_view suffix = one.substr(static_cast<size_t>(rest - one.data()));
    const bool exact = suffix.starts_with("a");
    const bool code = !suffix.ends_with("-virtual");
    const bool ptx = !suffix.ends_with("-real");
    const int wanted = major * 10 + minor;
    if (exact ? wanted == number
              : (code && number / 10 == major && number <= wanted) || (ptx && number <= wanted))
      return true;
  }
  return false;
}

Discovery discover(std::string_view architectures) {
  Discovery found;
  int driver = 0;
  int runtime = 0;
  int count = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess) driver = 0;
  if (cudaRuntimeGetVersion(&runtime) != cudaSuccess) runtime = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) count = 0;
  if (driver > 0) found.status.driver = version_text(driver);
  if (runtime > 0) found.status.runtime = version_text(runtime);
  found.status.reason = refusal_of_machine(error, count, driver, runtime);
  for (int i = 0; i < count; ++i) {
    cudaDeviceProp properties{};
    const cudaError_t unknown = cudaGetDeviceProperties(&properties, i);
    DeviceFacts device{i,
                       "cuda:" + std::to_string(i),
                       "cuda",
                       properties.name,
                       static_cast<int64_t>(properties.totalGlobalMem),
                       std::to_string(properties.major) + "." + std::to_string(properties.minor)};
    const std::string refusal = unknown == cudaSuccess
                                    ? refusal_of(device, properties.major, properties.minor, architectures)
                                    : device.id + " does not answer: " + text_of(unknown);
    if (refusal.empty())
      found.usable.push_back(std::move(device));
    else
      found.status.refused.emplace_back(device.id, refusal);
  }
  (void)cudaGetLastError();  // what has been said here must not be found by a later launch
  found.status.available = !found.usable.empty();
  if (!found.status.available && found.status.reason.empty())
    found.status.reason = found.status.refused.front().second;
  return found;
}

}  // namespace quantaria::cuda
